"""What the orchestrator and its actors are told of the environment."""

from orchestrator.cluster.environment import shared_environment


def test_actors_yield_to_other_programs_only_where_they_were_asked_to(monkeypatch):
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    assert shared_environment()["RAY_worker_niceness"] == "0"
    monkeypatch.setenv("RAY_worker_niceness", "7")
    assert shared_environment()["RAY_worker_niceness"] == "7"
