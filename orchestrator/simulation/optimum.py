"""The very best schedule of a handful of jobs, by trying all of them: the yardstick for policies on small instances.

The model: every job is known from the start (clairvoyant). At each arrival and each end every actor may be given any
set of the jobs that are there, each job to at most one actor; moving costs nothing and memory is no limit. A set S
then advances by one step of each of its jobs every T(S) = a + sum of v_j.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

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


def optimum_of_bases(
    tasks: Sequence[Task], bases: Sequence[str], load: float, shared: float, upper_bound: float = float("inf")
) -> float:
    """The least mean turnaround of up to six jobs of several base models on one actor, which has the first one's.

    At each arrival, each end and each end of a loading it may train any set of the jobs of its base model, load
    the base model of any other job that is there, or wait. A loading is not broken off.

    Args:
        tasks: The jobs; their weights are not looked at.
        bases: The base model of each.
        load: Seconds to load one.
        shared: a, the fixed seconds of a step.
        upper_bound: Mean turnaround of a schedule that is known already; makes the search faster.
    """
    search = _BaseSearch(tasks, bases, load, shared, upper_bound * len(tasks) + 1e-6)
    search.visit(min(task.release for task in tasks), bases[0], [task.steps for task in tasks], 0.0)
    return min(search.best, upper_bound * len(tasks)) / len(tasks)


class _BaseSearch:
    """Depth first on one actor, cut off by a bound of what is left."""

    def __init__(self, tasks: Sequence[Task], bases: Sequence[str], load: float, shared: float, best: float) -> None:
        self._tasks, self._bases, self._load, self._shared, self.best = tasks, bases, load, shared, best
        self._seen: dict[tuple[object, ...], float] = {}

    def visit(self, now: float, base: str, left: list[float], cost: float) -> None:
        """All schedules from a moment on; `cost` is the turnaround of the jobs that are done."""
        tasks, bases = self._tasks, self._bases
        open_ = [j for j, steps in enumerate(left) if steps > _NEGLIGIBLE]
        if not open_:
            self.best = min(self.best, cost)
            return
        if cost + self._bound(now, base, left, open_) >= self.best - _NEGLIGIBLE:
            return
        key = (round(now, 6), base, *(round(steps, 6) for steps in left))
        if self._seen.get(key, float("inf")) <= cost + _NEGLIGIBLE:
            return
        self._seen[key] = cost
        coming = min((tasks[j].release for j in open_ if tasks[j].release > now + _NEGLIGIBLE), default=float("inf"))
        here = [j for j in open_ if tasks[j].release <= now + _NEGLIGIBLE]
        here.sort(key=lambda j: left[j] * (self._shared + tasks[j].added))
        mine = [j for j in here if bases[j] == base]
        for size in range(1, len(mine) + 1):
            for group in combinations(mine, size):
                self._train(now, base, left, cost, group, coming)
        for other in dict.fromkeys(bases[j] for j in here if bases[j] != base):
            self.visit(now + self._load, other, left, cost)
        if coming < float("inf"):
            self.visit(coming, base, left, cost)

    def _train(
        self, now: float, base: str, left: list[float], cost: float, group: tuple[int, ...], coming: float
    ) -> None:
        step = self._shared + sum(self._tasks[j].added for j in group)
        then = min(now + min(left[j] for j in group) * step, coming)
        after = list(left)
        for j in group:
            after[j] = max(0.0, left[j] - (then - now) / step)
            if after[j] <= _NEGLIGIBLE * (1 + left[j]):
                after[j] = 0.0
                cost += then - self._tasks[j].release
        self.visit(then, base, after, cost)

    def _bound(self, now: float, base: str, left: Sequence[float], open_: Sequence[int]) -> float:
        """No job is done sooner than alone, nor all of them sooner than if they shared for free; others are loaded."""
        tasks, alone, ends, spent = self._tasks, 0.0, 0.0, 0.0
        for j in open_:
            begin = max(now, tasks[j].release) + (
                self._load if self._bases[j] != base and now >= tasks[j].release else 0.0
            )
            alone += begin - tasks[j].release + left[j] * (self._shared + tasks[j].added)
        for j in sorted(open_, key=lambda j: left[j] * tasks[j].added):
            spent += left[j] * tasks[j].added
            ends += now + spent - tasks[j].release
        return max(alone, ends)


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
