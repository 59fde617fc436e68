"""From a policy's order and wishes to a plan: memory, patience, who stays, who leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from orchestrator.scheduler import hosting, reasons
from orchestrator.scheduler.job_columns import Jobs, Models, unique_bases
from orchestrator.scheduler.place_columns import Places
from orchestrator.scheduler.policies.base import Policy
from orchestrator.scheduler.room import Floats, Ints, Mask
from orchestrator.scheduler.view import ActorState, ClusterView, Plan

PATIENCE_S = 60.0


class _Demand(NamedTuple):
    """What a job wants of a place's memory, in each of its sizes."""

    bytes: Floats
    worst: Floats


class Planner:
    """One plan in the making."""

    def __init__(self, view: ClusterView, policy: type[Policy]) -> None:
        self._tabulate(view)
        self._rejections, self._must_wait = self._never_fit()
        if unplaceable := {**self._rejections, **self._must_wait}:  # they count for nothing from here on
            self._tabulate(replace(view, jobs=tuple(job for job in view.jobs if job.id not in unplaceable)))
        self._target = np.full(self._jobs.count, -1, np.int64)  # place where each job shall be
        self._asked = ~self._jobs.lost  # whose place is still open
        self._unkeepable: dict[int, _Demand] = {}  # base model -> for whom no place can be kept
        self._attach(view)
        self._rehosts: dict[int, str] = {}
        self._policy = policy(self._jobs, self._places, view.makespan)
        if policy.rebalances:
            self._rehosts = hosting.rebalance(self._places, self._jobs, self._bases)
        self._policy.begin()
        self._outpaced = self._places.find_outpaced()
        order = self._policy.order()
        alone = self._jobs.alone[order]
        self._order = np.concatenate([order[alone], order[~alone]])  # a trial is short, and its suspects wait for it

    def _tabulate(self, view: ClusterView) -> None:
        actors = sorted(view.actors, key=lambda actor: actor.id)
        self._bases, models = unique_bases(view), Models(view)
        self._jobs = Jobs(view, actors, self._bases, models)
        self._places = Places(actors, self._bases, models, self._jobs)

    def _attach(self, view: ClusterView) -> None:
        """Who is on which place now. Where a speed is only guessed, nobody is taken off on the strength of that."""
        jobs, places = self._jobs, self._places
        attached = np.flatnonzero(jobs.at >= 0).tolist()
        for number, place in zip(attached, jobs.at[attached].tolist(), strict=True):
            places.attached[place].append(number)
            if places.views[place].doubts:
                jobs.movable[number] &= not places.views[place].guessed(jobs.views[number].base_model)
        index = {place.id: number for number, place in enumerate(places.views)}
        for job in view.jobs:
            if job.leaving and job.actor in index:
                places.leaving[index[job.actor]].append(job)

    def plan(self, *, explain: bool) -> Plan:
        """The whole plan."""
        self._settle()
        settled = self._order[(self._target >= 0)[self._order]][::-1].tolist()  # the best last
        rank = self._ranks()
        for job in self._candidates():
            while settled and rank[settled[-1]] < rank[job]:
                self._share(settled.pop())
            self._place(job)
        for job in settled:
            self._share(job)
        queued = self._order[(self._asked & (self._jobs.at < 0))[self._order]].tolist()
        if not self._policy.rebalances:
            self._rehosts = hosting.change_bases(self._places, self._jobs, self._bases, queued)
        return self._differences(queued, explain)

    # -- who is not asked ----------------------------------------------------------------------------------------

    def _never_fit(self) -> tuple[dict[str, str], dict[str, str]]:
        """Queued jobs that no place could hold as it is, with the reason: to be rejected, and to wait all the same.

        Rejected is a job that has never started, and that fits nowhere by the guess either: a fit wavers, and nothing
        that has trained is lost for that.
        """
        jobs, places = self._jobs, self._places
        fits = (jobs.at >= 0) | jobs.leaving | jobs.lost
        guessed = np.array([job.started for job in jobs.views], bool)
        for number, ref in enumerate(self._bases):
            hosts = places.kinds_that_may_host(ref)
            of_base = jobs.base == number
            if not hosts:
                fits |= of_base
            fits |= of_base & jobs.fit_alone({places.memory(place, ref) for place in hosts})
            if not (fits | guessed)[of_base].all():
                every = [place for place in range(places.count) if places.may_host(place, ref)]
                guessed |= of_base & jobs.fit_alone(
                    {memory for place in every for memory in places.guessed_memories(place, ref)}
                )
        rejections: dict[str, str] = {}
        must_wait: dict[str, str] = {}
        for job in np.flatnonzero(~fits).tolist():
            view = jobs.views[job]
            (must_wait if guessed[job] else rejections)[view.id] = reasons.never_fits(places, view)
        return rejections, must_wait

    def _settle(self) -> None:
        """Running jobs that stay where they are, whatever the policy would like.

        They take memory from the start, and are company only for those behind them in the order. So a job that has
        just been placed, and cannot be moved yet, is to those ahead of it what it was when they were placed.
        """
        jobs, places = self._jobs, self._places
        for job in np.flatnonzero(jobs.at >= 0):
            place = int(jobs.at[job])
            stable = places.states[place] is ActorState.READY or places.closed[place]
            if self._policy.preempts and jobs.movable[job] and stable:
                places.wait(place, 1)
            else:
                places.hold(place, int(job))
                self._target[job], self._asked[job] = place, False

    def _share(self, job: int) -> None:
        self._places.share(int(self._target[job]), job)

    def _ranks(self) -> Ints:
        """Of each job its place in the order."""
        rank = np.empty(self._jobs.count, np.int64)
        rank[self._order] = np.arange(self._jobs.count)
        return rank

    # -- placing -------------------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[int]:
        """Jobs to be placed, the best first, without those that no place can take any more."""
        left = self._order[self._asked[self._order]]
        while len(left):
            left = left[self._hopeful(left)]
            for number, job in enumerate(left, start=1):
                yield int(job)
                if self._target[job] < 0:
                    left = left[number:]
                    break
            else:
                return

    def _hopeful(self, left: Ints) -> Mask:
        """Who may find a place, or may want one kept."""
        jobs, places = self._jobs, self._places
        hopeful = np.zeros(len(left), bool)
        for base in np.unique(jobs.base[left]):
            of_base = np.flatnonzero(jobs.base[left] == base)
            members = left[of_base]
            patient = (jobs.waited[members] < PATIENCE_S) | (jobs.at[members] >= 0)
            if (places.kept_for >= 0).any():
                kept = places.kept_for[places.kept_for >= 0]
                patient |= bool((jobs.base[kept] == base).any())
            if int(base) in self._unkeepable:
                demand = self._unkeepable[int(base)]
                patient |= (
                    (demand.bytes <= jobs.bytes[:, members].T) & (demand.worst <= jobs.worst[:, members].T)
                ).all(axis=1)
            hosts = places.hosts(int(base)) & (places.kept_for < 0)
            if not hosts.any():
                hopeful[of_base] = ~patient & (not self._policy.rebalances)
                continue
            fits = places.may_fit(hosts, members)
            hopeful[of_base] = self._policy.hopeful(members, hosts) & (fits | ~patient)
        return hopeful

    def _place(self, job: int) -> None:
        jobs, places = self._jobs, self._places
        here, base = int(jobs.at[job]), int(jobs.base[job])
        if here >= 0 and places.hosts_at(here, base) and places.kept_for[here] < 0 and self._stays_put(job, here):
            self._put(job, here)
            return
        hosts = places.hosts(base) & (places.kept_for < 0)
        wanted = np.where(hosts, self._policy.cost(job), np.inf)
        cost = np.where(places.fits(job), wanted, np.inf)
        if np.isfinite(cost).any():
            self._put(job, self._stay_or_go(job, here, cost) if here >= 0 else self._go(job, cost))
        elif here < 0 and jobs.waited[job] >= PATIENCE_S and (self._may_keep(wanted, hosts) or jobs.alone[job]):
            self._keep(job)

    def _may_keep(self, wanted: Floats, hosts: Mask) -> bool:
        """Whether it is for want of memory, or of a host that nobody else sees to, that a job finds no place."""
        return bool(np.isfinite(wanted).any()) or not (hosts.any() or self._policy.rebalances)

    def _stays_put(self, job: int, here: int) -> bool:
        """Whether a running job stays without a further look: it is wanted, fits, and is alone or no place is vacant.

        Nobody stays like that on a place that is slower than others.

        A place whose jobs are still to be decided of is not vacant: who moves there turns them out. To look there as
        well doubled the swaps and made the mean worse (docs/scheduling.md).
        """
        places = self._places
        return (
            not self._outpaced[here]
            and (places.jobs_on[here] == 0 or not places.vacant)
            and self._policy.takes(job, here)
            and places.fits_at(here, job)
        )

    def _go(self, job: int, cost: Floats) -> int:
        """The cheapest place for a queued job; of equal ones one where no running job would have to leave."""
        places = self._places
        return int(np.argmin(cost + (places.pending > 0) * places.swap * self._jobs.weight[job]))

    def _stay_or_go(self, job: int, here: int, cost: Floats) -> int:
        """A running job moves only where that saves clearly more than it costs.

        One that cannot stay chooses as it will when it is off: it may count on a place that is still loading.
        """
        best = int(np.argmin(cost))
        if best == here or not np.isfinite(cost[here]):
            return best
        places, jobs = self._places, self._jobs
        if not places.ready[best]:
            return here
        worth = 3 * places.swap[best] * jobs.weight[job]
        if places.jobs_on[best]:
            worth = max(worth, jobs.weight[job] * jobs.left[job] * (jobs.shared[job] + jobs.added[job]))
        return best if cost[here] - cost[best] > worth else here

    def _put(self, job: int, place: int) -> None:
        self._places.add(place, job)
        self._target[job] = place
        if self._asked[job] and self._jobs.at[job] >= 0:
            self._places.wait(int(self._jobs.at[job]), -1)

    def _keep(self, job: int) -> None:
        """Keep a place for a job that has waited long: an idle one, or a host of its base model, or the emptiest."""
        jobs, places = self._jobs, self._places
        kept = places.kept_for[places.kept_for >= 0]
        base = int(jobs.base[job])
        if (jobs.base[kept] == base).any():
            return
        view, hosts = jobs.views[job], places.hosts(base)
        candidates = [
            place
            for place in np.flatnonzero(places.kept_for < 0).tolist()
            if (hosts[place] or (self._may_load(place) and places.can_load(place, view.base_model)))
            and places.fits_alone(place, view)
        ]
        if not candidates:
            self._unkeepable[base] = _Demand(jobs.bytes[:, job], jobs.worst[:, job])
            return
        best = min(
            candidates,
            key=lambda p: (not places.idle(p), not hosts[p], places.views[p].pinned is None, places.jobs_on[p], p),
        )
        places.kept_for[best] = job

    def _may_load(self, place: int) -> bool:
        """Whether a place can be kept for another base model; a policy that rebalances sees to that itself."""
        return not self._policy.rebalances and self._places.stable(place)

    # -- the plan ------------------------------------------------------------------------------------------------

    def _differences(self, queued: list[int], explain: bool) -> Plan:
        jobs, places, target = self._jobs, self._places, self._target
        names = [job.id for job in jobs.views]
        ids = [place.id for place in places.views]
        present, company = places.present(), places.company()
        placements: dict[int, int] = {}
        after: dict[int, int] = {}
        for job in (job for job in queued if target[job] >= 0):
            place = int(target[job])
            if not places.ready[place]:
                continue
            size = places.size_at(place, job)
            alone = bool(jobs.alone[job])
            bears = not any(company[place]) and not (alone and company[place])
            if not jobs.leaving[job] and bears and present.fits_at(place, *size):
                present.add(place, *size)
                company[place].append(alone)
                placements[job] = place
            else:
                after[job] = place
        leave = np.flatnonzero(self._asked & (jobs.at >= 0) & (target != jobs.at)).tolist()
        moves = {job: int(target[job]) for job in leave if target[job] >= 0 and places.ready[target[job]]}
        gone = [job for job in leave if job not in moves]
        waiting = [job for job in queued if job not in placements and not jobs.leaving[job]]
        why = reasons.Reasons(places, jobs, self._bases, self._policy.turn) if explain else None
        return Plan(
            placements={names[job]: ids[place] for job, place in placements.items()},
            preemptions={names[job]: why.leaves(job) if why else "" for job in gone},
            moves={names[job]: ids[place] for job, place in moves.items()},
            after={names[job]: ids[place] for job, place in {**after, **moves}.items()},
            waiting={
                **self._must_wait,
                **{names[job]: why.waits(job, after.get(job)) if why else "" for job in waiting},
            },
            rejections=self._rejections,
            rehosts={ids[place]: ref for place, ref in self._rehosts.items()},
            order=self._batch_order(names, ids),
        )

    def _batch_order(self, names: list[str], ids: list[str]) -> dict[str, tuple[str, ...]]:
        rank = self._ranks()
        return {
            ids[place]: tuple(names[job] for job in sorted(there, key=lambda job: rank[job]))
            for place, there in enumerate(self._places.planned)
            if there and self._places.states[place] is ActorState.READY
        }
