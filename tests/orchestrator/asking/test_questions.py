"""Who answers whom: the actor that trains a job has its newest step; everybody else joins an actor that answers."""

import pytest

from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.questions import Answerer, AskRequest
from orchestrator.asking.questions import check_reach, divide

BASE, DONE, ONE, TWO = (
    Answerer(name="base"),
    Answerer(name="done", folder="/d", job_id="d"),
    Answerer(name="one", folder="/1", job_id="1"),
    Answerer(name="two", folder="/2", job_id="2"),
)
TRAINS = {"1": "a", "2": "b"}


@pytest.mark.parametrize(
    ("answerers", "hosts", "expected"),
    [
        ((BASE, ONE, DONE, TWO), ("a", "b"), [("a", (0, 1, 2)), ("b", (3,))]),
        ((BASE, TWO), ("a", "b"), [("b", (0, 1))]),
        ((BASE, DONE), ("c", "a"), [("c", (0, 1))]),
        ((BASE, ONE, TWO), ("b",), [("b", (0, 1, 2))]),  # the other actor is lost: a checkpoint answers
        ((BASE, ONE), (), [(None, (0, 1))]),
    ],
)
def test_a_request_is_divided_among_the_actors(answerers, hosts, expected):
    request = AskRequest(request_id="r", base_model="m", questions=("?",), answerers=answerers)
    parts = divide(request, TRAINS, hosts)
    assert [(part.actor, part.numbers) for part in parts] == expected
    assert [part.request.answerers for part in parts] == [tuple(answerers[i] for i in n) for _, n in expected]
    assert len({part.request.request_id for part in parts}) == len(parts)


def test_who_asks_reads_nothing_outside_the_allowed_folders(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    roots = [str(tmp_path / "inside")]
    ask = lambda **who: AskRequest(  # noqa: E731
        request_id="r", base_model="m", questions=("?",), answerers=(BASE, Answerer(name="one", **who))
    )
    check_reach(ask(folder=f"{roots[0]}/out", chat_template="{{ messages }}"), roots)
    check_reach(ask(folder="/etc"), [])
    for who in ({"folder": "/etc"}, {"folder": f"{roots[0]}/link/x"}, {"chat_template": "/etc/t.jinja"}):
        with pytest.raises(AdapterError, match=r"one: .* outside the allowed folders; allowed: below"):
            check_reach(ask(**who), roots)
