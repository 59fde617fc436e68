"""What must be so when a history is over: of all jobs, and of all that they went through."""

import math
from collections import Counter

from gpu_actor.contract.report import TenantState
from orchestrator.jobs.states import TERMINAL, JobState
from support.histories.actors import ViolationError
from support.histories.clock import EPOCH

LEGAL = {
    ("QUEUED", "RUNNING"),
    ("QUEUED", "PAUSED"),
    ("QUEUED", "CANCELLED"),
    ("QUEUED", "FAILED"),
    ("RUNNING", "QUEUED"),
    ("RUNNING", "PAUSED"),
    ("RUNNING", "SUCCEEDED"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
    ("PAUSED", "QUEUED"),
    ("PAUSED", "CANCELLED"),
    ("FAILED", "QUEUED"),
    ("CANCELLED", "QUEUED"),
}
HEEDED = {  # what may become of a running job once somebody's wish for it was accepted, and what may replace the wish
    "cancel": ({"CANCELLED", "SUCCEEDED"}, set()),
    "pause": ({"PAUSED", "SUCCEEDED", "FAILED"}, {"cancel", None}),
}
SAID = {  # how the record of an end begins that the actor has reported, and how the attempt may have ended there
    "taken off": {TenantState.DETACHED},
    "paused at step": {TenantState.DETACHED},
    "cancelled at step": {TenantState.DETACHED, TenantState.CANCELLED, TenantState.FAILED},
    "failed: it is poisoned": {TenantState.FAILED},
    "succeeded after": {TenantState.SUCCEEDED},
}


def check_ends(history):
    """Every accepted job is there once, has gone legal ways only, and has ended as it must; nobody is charged wrongly.

    Raises:
        ViolationError: Something is not so.
    """
    rows = history.table.rows("SELECT id, name, state, reason, attempt, retries FROM jobs")
    known = sorted(job_id for ids in history.ids.values() for job_id in ids)
    if sorted(row[0] for row in rows) != known:
        raise ViolationError(f"jobs lost or doubled: accepted {known}, in the table {[row[:2] for row in rows]}")
    for change in history.table.rows("SELECT * FROM transitions"):
        _check_change(*change)
    attempts = Counter()
    for job_id, time, message in history.table.rows("SELECT job_id, time, message FROM events ORDER BY seq"):
        attempts[job_id] += message.startswith("assigned to ")
        _check_said(history.world.ended, job_id, attempts[job_id], time, message)
    for row in rows:
        _check_end(history, *row)
    if history.world.failures:
        raise ViolationError(f"a tick failed: {history.world.failures[0]!r}") from history.world.failures[0]


def _check_change(job_id, old, new, before, attempt, wished, wish):
    if (old, before) != (new, attempt):
        started = (old, new) == ("QUEUED", "RUNNING")
        if (old, new) not in LEGAL or attempt != before + started:
            raise ViolationError(f"{job_id} went from {old}, attempt {before}, to {new}, attempt {attempt}")
    if wished in HEEDED:
        ends, wishes = HEEDED[wished]
        if wish not in wishes if old == new else new not in ends:
            raise ViolationError(f"{job_id} was asked to {wished} and became {new} with the wish {wish}")


def _check_said(ended, job_id, attempt, time, message):
    """What is recorded of an attempt is what that one has done, not an earlier one."""
    for words, states in SAID.items():
        if message.startswith(words):
            when, how = ended.get((job_id, attempt), (math.inf, None))
            if how not in states or EPOCH + when > time:
                raise ViolationError(f"attempt {attempt} of {job_id} had ended as {how}, or not yet: {message}")


def _check_end(history, job_id, name, state, reason, attempt, retries):
    nature = history.world.natures[job_id]
    ends = {
        JobState.SUCCEEDED: job_id in history.world.disk.adapters,
        JobState.CANCELLED: job_id in history.cancelled,
        JobState.FAILED: (
            ("it is poisoned" in (reason or "") and nature.fails_at > 0)
            or ("no other job on it" in (reason or "") and (nature.kills_at > 0 or _by_chance(history, [reason])))
            or ("3 actors in a row died while loading it" in (reason or "") and len(history.world.killers) >= 3)
        ),
    }
    if JobState(state) not in TERMINAL or not ends[JobState(state)]:
        raise ViolationError(f"{name} ({nature}) ended as {state} ({reason}), attempt {attempt}")
    told = [message for (message,) in history.table.rows(f"SELECT message FROM events WHERE job_id = '{job_id}'")]
    if not nature.kills_at and retries > _by_chance(history, told):
        raise ViolationError(f"{name} is charged with {retries} deaths and has killed nobody")


def _by_chance(history, messages):
    """How many of the messages tell of an actor whose process died, and no job had done it."""
    names = [name for name, killer in history.world.killers.items() if killer is None]
    return sum(f"{name} is lost" in message for name in names for message in messages)
