"""`loray wait`: what became of jobs, as an exit code."""

import pytest

from orchestrator.cli.wait import exit_code
from support.views import view


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["SUCCEEDED", "SUCCEEDED"], 0),
        (["SUCCEEDED", "CANCELLED", "FAILED"], 1),
        (["FAILED", "RUNNING"], 1),
        (["SUCCEEDED", "CANCELLED"], 4),
        (["CANCELLED", "QUEUED"], 124),
        (["PAUSED"], 124),
    ],
)
def test_a_failure_says_more_than_the_time_that_was_up_and_that_more_than_a_cancellation(states, code):
    assert exit_code([view(state=state) for state in states]) == code
