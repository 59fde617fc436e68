"""The very best schedule of a handful of jobs, by trying all of them: the yardstick for policies on small instances.

The model: every job is known from the start (clairvoyant). At each arrival and each end every actor may be given any
set of the jobs that are there, each job to at most one actor; moving costs nothing and memory is no limit. A set S
then advances by one step of each of its jobs every T(S) = a + sum of v_j.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.simulation.bounds import Task

_NEGLIGIBLE = 1e-9


def optimum(tasks: Sequence[Task], shared: float, actors: int = 1, upper_bound: float = float("inf")) -> float:
    """The least weighted mean turnaround of up to six jobs: sum of w (end - release) over sum of w.

    Args:
        tasks: The jobs.
        shared: a, the fixed seconds of a step.
        actors: Number of actors.
        upper_bound: Weighted mean turnaround of a schedule that is known already; makes the search faster.
    """
    total = sum(task.weight for task in tasks)
    search = _Search(tasks, shared, actors, upper_bound * total + 1e-6)
    search.visit(min(task.release for task in tasks), [task.steps for task in tasks], 0.0)
    return min(search.best, upper_bound * total) / total


class _Search:
    """Depth first, cut off by a bound of what is left."""

    def __init__(self, tasks: Sequence[Task], shared: float, actors: int, best: float) -> None:
        self._tasks, self._shared, self._actors, self.best = tasks, shared, actors, best
        self._seen: dict[tuple[float, ...], float] = {}

    def visit(self, now: float, left: list[float], cost: float) -> None:
        """All schedules from a moment on; `cost` is the weighted turnaround of the jobs that are done."""
        tasks = self._tasks
        open_ = [j for j, steps in enumerate(left) if steps > _NEGLIGIBLE]
        if not open_:
            self.best = min(self.best, cost)
            return
        if cost + self._bound(now, left, open_) >= self.best - _NEGLIGIBLE:
            return
        key = (round(now, 6), *(round(steps, 6) for steps in left))
        if self._seen.get(key, float("inf")) <= cost + _NEGLIGIBLE:
            return
        self._seen[key] = cost
        here = [j for j in open_ if tasks[j].release <= now + _NEGLIGIBLE]
        coming = min((tasks[j].release for j in open_ if tasks[j].release > now + _NEGLIGIBLE), default=float("inf"))
        if not here:
            self.visit(coming, left, cost)
            return
        here.sort(key=lambda j: left[j] * (self._shared + tasks[j].added) / tasks[j].weight)
        for groups in _groupings(here, self._actors):
            self._follow(now, left, cost, groups, coming)

    def _follow(self, now: float, left: list[float], cost: float, groups: list[list[int]], coming: float) -> None:
        tasks = self._tasks
        steps = [self._shared + sum(tasks[j].added for j in group) for group in groups]
        ends = min(min(left[j] for j in group) * step for group, step in zip(groups, steps, strict=True))
        then = min(now + ends, coming)
        after = list(left)
        for group, step in zip(groups, steps, strict=True):
            for j in group:
                after[j] = max(0.0, left[j] - (then - now) / step)
                if after[j] <= _NEGLIGIBLE * (1 + left[j]):
                    after[j] = 0.0
                    cost += tasks[j].weight * (then - tasks[j].release)
        self.visit(then, after, cost)

    def _bound(self, now: float, left: Sequence[float], open_: Sequence[int]) -> float:
        """No job is done sooner than alone, nor all of them sooner than on one fast machine that shares for free."""
        tasks, alone, ends, spent = self._tasks, 0.0, 0.0, 0.0
        for j in open_:
            start = max(now, tasks[j].release) - tasks[j].release
            alone += tasks[j].weight * (start + left[j] * (self._shared + tasks[j].added))
        for j in sorted(open_, key=lambda j: left[j] * tasks[j].added / tasks[j].weight):
            spent += left[j] * tasks[j].added / self._actors
            ends += tasks[j].weight * (now + spent - tasks[j].release)
        return max(alone, ends)


def _groupings(jobs: Sequence[int], actors: int) -> Iterator[list[list[int]]]:
    """All ways to give jobs to actors or to let them wait; actors are alike, and not all may be idle."""

    def place(index: int, groups: list[list[int]]) -> Iterator[list[list[int]]]:
        if index == len(jobs):
            if groups:
                yield [list(group) for group in groups]
            return
        for group in groups:
            group.append(jobs[index])
            yield from place(index + 1, groups)
            group.pop()
        if len(groups) < actors:
            groups.append([jobs[index]])
            yield from place(index + 1, groups)
            groups.pop()
        yield from place(index + 1, groups)

    return place(0, [])
