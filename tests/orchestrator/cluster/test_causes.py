"""What is said of an actor that died: the cause, on one line, with nothing that a terminal obeys."""

import pytest

from gpu_actor.contract.messages import one_line
from orchestrator.cluster.member import cause_of_death, is_nobodys_death

HEAD = "The actor died unexpectedly before finishing this task.\n\tclass_name: GpuActor\n\tactor_id: 5d0e\n\tpid: 31\n"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            f"{HEAD}The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
            "detail: Worker unexpectedly exits with a connection error code 2. End of file. There are some potential "
            "root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage.",
            "Worker unexpectedly exits with a connection error code 2. End of file",
        ),
        (f"{HEAD}The actor is dead because its node has died. Node Id: 7f", "its node has died. Node Id: 7f"),
        ("\x1b[36mray::GpuActor\x1b[39m \x1b]0;title\x07 fell\x00 over\r\n", "ray::GpuActor fell over"),
        ("", "RuntimeError"),
    ],
)
def test_the_cause_comes_without_what_stands_around_it(text, cause):
    assert cause_of_death(RuntimeError(text)) == cause


def test_a_message_holds_nothing_that_a_terminal_obeys():
    text = one_line(
        RuntimeError("\x1b[2J\x9b31mred\x1b[0m\ttab\x07 \x1b(B \u202e\ud800 \u00fcber \x1b]8;;http://x\x1b\\\\link")
    )
    assert text.isprintable()
    assert text.startswith("red tab")
    assert "\u00fcber" in text
    assert len(one_line(RuntimeError("x" * 1000))) == 300


@pytest.mark.parametrize(
    ("cause", "nobodys"),
    [
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit", False),
        ("The actor died because its node has died. Node Id: 7f", True),
        ("The actor is dead because its owner has died. Owner Id: 7f", True),
        ("The actor is dead because it was killed by `ray.kill`.", True),
    ],
)
def test_whose_death_may_be_a_jobs_doing(cause, nobodys):
    assert is_nobodys_death(RuntimeError(f"{HEAD}{cause}")) is nobodys
