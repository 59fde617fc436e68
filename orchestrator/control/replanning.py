"""When a new plan is made, and when the one that stands is good enough."""

from __future__ import annotations

import time
from dataclasses import replace

from orchestrator.control.snapshot import Snapshot
from orchestrator.scheduler.incremental import IncrementalPlan
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import Plan

PLAN_SECONDS = 10.0  # between two plans when nothing happens
_CHEAP_SECONDS = 0.05  # of processor time: while a full plan takes no more, every event makes one
_PAUSE = 20.0  # times what it took that a dearer one stands: so planning takes a twentieth of the time


class Replanner:
    """Asks the policy anew when something has happened that its latest plan does not answer."""

    def __init__(self, policy: str) -> None:
        """Nothing is planned yet.

        Args:
            policy: Name of the scheduler's policy.
        """
        self._policy = policy
        self._last: Snapshot | None = None  # that something was decided on
        self._incremental: IncrementalPlan | None = None  # what stands of the latest full plan, if it may be dear
        self._planned_at, self._pause = 0.0, 0.0  # when that was made (monotonic), and for how many seconds it is good
        self._answered_since = False  # whether arrivals or ends were answered from it

    def plan(self, snapshot: Snapshot) -> Plan:
        """What the policy wants now.

        As long as nothing happens the plan is empty, except every `PLAN_SECONDS`, since time alone changes what is
        due. In a cluster so large that a full plan takes long, arrivals and ends are answered for a while from what
        stands of the latest full plan. Jobs whose base model is not described yet are among those that wait.
        """
        last = self._last
        self._last, since = snapshot, time.monotonic() - self._planned_at
        if last is not None and since < PLAN_SECONDS:
            if not snapshot.differs(last) and not (self._answered_since and since >= self._pause):
                return Plan()
            if since < self._pause and (answer := self._answer(snapshot, last)) is not None:
                self._answered_since = True
                return answer
        return self._full_plan(snapshot)

    def _full_plan(self, snapshot: Snapshot) -> Plan:
        """Every job anew; if the latest full plan was dear, what is needed to answer from this one is kept."""
        self._planned_at, started = time.monotonic(), time.process_time()
        self._incremental = IncrementalPlan(snapshot.view, self._policy) if self._pause else None
        plan = self._incremental.full if self._incremental else decide(snapshot.view, self._policy)
        seconds = time.process_time() - started
        self._pause = _PAUSE * seconds if seconds > _CHEAP_SECONDS else 0.0
        self._answered_since = False
        return replace(plan, waiting={**plan.waiting, **snapshot.held})

    def _answer(self, snapshot: Snapshot, last: Snapshot) -> Plan | None:
        """Who starts after arrivals and ends; None if it takes a full plan."""
        events = snapshot.events(last)
        if events is None or self._incremental is None:
            return None
        if any(self._incremental.place_of(job_id) != place for job_id, place in events.started.items()):
            return None
        return self._incremental.answer(events.arrived, events.gone, snapshot.view.now)
