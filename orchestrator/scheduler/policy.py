"""decide(view, policy) -> plan: who trains where. The controller and the simulator call the very same function.

What is the same under every policy:

1. A job starts only where its base model is hosted and where it fits by the memory model. It may be planned for an
   actor that is still loading its base model; then it waits for it.
2. A job that does not fit lets those behind it pass, until it has waited for `PATIENCE_S`. From then on one actor is
   kept for it: none behind it starts there, so that the actor drains. The same holds for a job whose base model
   nobody hosts, so that no base model starves. One actor at a time is kept for a base model.
3. An actor without an active job, whose base model no waiting job can use there, changes to another: first to base
   models that nobody hosts, in the order of the jobs that wait for them, then to those with more waiting jobs than
   actors that are loading for them; a policy that `rebalances` goes by `hosting.rebalance` instead. An actor that the
   cluster file gives to one base model never changes; nor does one with active jobs.
4. A job that would not fit even alone on any actor that may host its base model is rejected, if the guess of the
   memory says so as well; one that has started waits, with the same reason.
5. Only a job that is `movable` is taken off its actor, and only under a policy that pre-empts.

6. A job that is tried `alone` starts only where nobody else is, and nobody joins it. It goes first: a trial is short.

What is a policy's own: the order of the jobs, and where each is wanted (see `policies`).
"""

from __future__ import annotations

from orchestrator.scheduler.planner import PATIENCE_S, Planner
from orchestrator.scheduler.policies import DEFAULT, POLICIES
from orchestrator.scheduler.view import ClusterView, Plan

__all__ = ["DEFAULT", "PATIENCE_S", "POLICIES", "decide"]


def decide(view: ClusterView, policy: str = DEFAULT, *, explain: bool = True) -> Plan:
    """The plan for one look at the cluster.

    Equal views give equal plans, and a plan that was carried out calls for no further placement.

    Args:
        view: The cluster.
        policy: One of `POLICIES`.
        explain: Whether to say why each job waits or leaves; a clock that only exists on paper does not ask.
    """
    return Planner(view, POLICIES[policy]).plan(explain=explain)
