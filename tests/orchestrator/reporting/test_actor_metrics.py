"""What metrics keep of actors, over many that come and go."""

from gpu_actor.contract.report import ActorPhase, ActorReport
from orchestrator.reporting.metrics import ActorMetrics, Metrics


def state(number):
    """An actor that has loaded its base model and trained."""
    report = ActorReport(f"a{number}", f"boot {number}", ActorPhase.READY, trained_tokens=100, generated_tokens=5)
    return ActorMetrics(f"a{number}", f"cpu:{number % 2}", report, load_seconds=1.0, predicted_bytes=0.0)


def test_nothing_is_kept_of_actors_that_are_gone():
    metrics = Metrics()
    for number in range(20):
        metrics.actors([state(number), state(number + 1)])
    assert metrics._loaded == {"a19", "a20"}
    assert metrics._counted == {
        boot: {"loray_trained_tokens": 100, "loray_generated_tokens": 5} for boot in ("boot 19", "boot 20")
    }
