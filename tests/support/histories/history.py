"""One history: an orchestrator on a simulated cluster, its calls and deaths, and what must be so all the time."""

import asyncio
import logging
import random
import secrets
import warnings
from dataclasses import dataclass, replace

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.errors import LorayError
from orchestrator.cluster import fleet as fleet_module
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.fleet import SILENCE_SECONDS, Fleet
from orchestrator.cluster.places import listed_places
from orchestrator.control import job_verbs, plan_execution, replanning
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.snapshot import SnapshotBuilder
from orchestrator.jobs.job import JobSpec, QueueConfig
from orchestrator.jobs.states import JobState
from orchestrator.knowledge import base_catalog
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.profiles import Profiles
from orchestrator.owners.limits import OwnerLimits
from orchestrator.scheduler.policy import POLICIES, decide
from orchestrator.store.store import Store
from support.histories.actors import BY_ITSELF, NODES, WITH_ITS_NODE, Nature, ViolationError, World
from support.histories.clock import DeadlockError, Life, SimulatedLoop, begin, simulate_time
from support.histories.ends import check_ends
from support.house import describe

TEST = "tests/orchestrator/control/test_histories.py"
CHAOS_SECONDS = (5.0, 25.0)  # after which nothing goes wrong any more
MOST_SECONDS = 400.0  # until everything must be over
FREEZE_SECONDS = (0.0, SILENCE_SECONDS)  # about so long a process is stopped
BASES = ("/models/a", "/models/b")


class Orchestrator:
    """A life of the orchestrator: the real store, fleet, reconciler and policy."""

    def __init__(self, config, world):
        self.store = Store(config.database_url)
        self._config, self._world, self.adopted = config, world, False
        self.fleet = Fleet(config, self.store, {})
        bases, profiles = BaseCatalog({}), Profiles(self.store)
        for ref in BASES:
            bases._descriptions[ref, None] = describe(ref)
        snapshots = SnapshotBuilder(self.store, self.fleet, bases, profiles, OwnerLimits(config, self.store))
        ignore = lambda _: None  # noqa: E731
        policy = config.scheduler.policy
        self.reconciler = Reconciler(self.store, self.fleet, bases, ignore, ignore, ignore, profiles, snapshots, policy)

    async def run(self):
        while True:
            try:
                if not self.adopted:
                    await self.store.turn(self._adopt)
                    self.adopted = True
                await self.reconciler.tick()
            except ViolationError:
                raise
            except Exception as error:
                self._world.note(f"a tick failed: {error!r}")
                self._world.failures.append(error)
            # where nobody trains little happens, and each tick costs milliseconds
            await asyncio.sleep(1.0 if self.store.jobs([JobState.RUNNING]) else 2.0)

    def _adopt(self):
        self.fleet.discover()
        self.fleet.adopt()


@dataclass
class Asked:
    """A call of a client, as it must be answered."""

    words: str
    answer: object = None


class History:
    """A history, all of whose accidents follow from a number."""

    def __init__(self, seed, table, patch):
        self.random = random.Random(seed)
        self.table = table
        self.loop = SimulatedLoop(self.random)
        self.loop.set_exception_handler(self._heard)
        self.world = World(self.loop, self.random)
        self.world.failures = []
        self.config = ClusterConfig(
            storage="/nowhere/storage",
            actors=[{} for _ in range(self.random.randint(1, 3))],
            scheduler={"policy": self.random.choice(sorted(POLICIES))},
        )
        self.chaos_seconds = self.random.uniform(*CHAOS_SECONDS)
        self.bases = BASES[: self.random.randint(1, 2)]
        self.calls, self.cancelled, self.externally_killed = [], set(), 0
        self.coming = 0  # clients and accidents that are not over
        self.ids = {}  # request -> ids
        self.life = self.orchestrator = None
        self.raised = None
        self._patch(patch)

    def _heard(self, _, context):
        """What a callback has raised; what is left of the dead is nobody's."""
        if isinstance(context.get("exception"), ViolationError):
            self.raised = self.raised or context["exception"]

    def _patch(self, patch):
        patch.setattr(logging.getLogger("sqlalchemy.pool"), "disabled", True)
        simulate_time(patch, self.loop, self.random)
        patch.setattr(fleet_module, "ray", self.world.double_of_ray())
        patch.setattr(fleet_module, "HeadLink", lambda: None)
        patch.setattr(secrets, "randbits", self.random.getrandbits)
        patch.setattr(secrets, "token_hex", lambda count: f"{self.random.getrandbits(8 * count):0{2 * count}x}")
        patch.setattr(plan_execution, "write_job_file", self._write_job_file)
        places = listed_places(self.config.actors, NODES)
        patch.setattr(fleet_module, "configured_places", lambda *_: places)
        patch.setattr(replanning, "decide", self._decide)
        patch.setattr(base_catalog, "_key", lambda ref: (ref, None))  # no history looks for them on the disk

    def _decide(self, view, policy):
        """The real plan; of places that are equally good it takes now this one, now that one."""
        return decide(replace(view, actors=tuple(self.random.sample(view.actors, len(view.actors)))), policy)

    def _write_job_file(self, spec):
        if self.world.disk.refuses and self.random.random() < 0.5:
            raise OSError(28, "No space left on device")

    # -- the orchestrator's lives --------------------------------------------------------------------------------

    def start(self):
        steps = self.random.choice([None, self.random.randint(1, 400)]) if self.world.chaos else None
        self.orchestrator = Orchestrator(self.config, self.world)
        self.life = Life(self.loop, steps, self._died)
        self.task = begin(self.loop, self.life, self.orchestrator.run())
        self.task.add_done_callback(self._ended)

    def _ended(self, task):
        self.raised = self.raised or task.exception()

    def _died(self):
        self.world.note("the orchestrator dies")
        self.table.crash()
        self.orchestrator = None
        self.loop.call_later(self.random.uniform(0.5, 5.0), self.start)

    # -- clients -------------------------------------------------------------------------------------------------

    async def ask(self, words, work):
        """A call, which Ray repeats when the orchestrator dies before it has answered."""
        call = Asked(words)
        self.calls.append(call)
        while call.answer is None:
            while self.orchestrator is None:
                await asyncio.sleep(0.5)
            life, answer = self.life, self.loop.create_future()
            begin(self.loop, life, self._answer(self.orchestrator, work, answer))
            await asyncio.wait([answer, life.death], timeout=MOST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not life.over and not answer.done():
                raise ViolationError(f"never answered: {words}")
            if answer.done() and (not self.world.chaos or self.random.random() < 0.95):  # else the answer is lost
                call.answer = answer.result()
        self.world.note(f"{words}: {call.answer}")
        return call.answer

    async def _answer(self, orchestrator, work, answer):
        try:
            result = await orchestrator.store.turn(lambda: work(orchestrator.store))
        except LorayError as error:
            result = error
        except Exception as error:
            self.raised = self.raised or error
            return
        answer.set_result(result)

    def submit(self, number):
        draw, request = self.random, f"r{number}"
        doubts = draw.random() < 0.4
        specs, natures = [], []
        for place in range(draw.randint(1, 3)):
            nature = Nature(draw.randint(2, 25))
            kind = draw.random()
            if kind < 0.1:
                nature.fails_at = draw.randint(1, nature.total)
            elif kind < 0.2 and not any(n.kills_at for n in self.world.natures.values()):
                nature.kills_at = draw.randint(1, nature.total)
            name = f"job-{number}-{place}"
            specs.append(
                JobSpec(
                    name=name,
                    base_model=draw.choice(self.bases),
                    dataset=DatasetConfig(path="/nowhere/data.jsonl"),
                    training={"max_steps": nature.total},
                    queue=QueueConfig(priority=draw.randint(-1, 1), max_retries=draw.choice([0, 1, 2, 3])),
                    output_dir=f"/nowhere/{name}",
                )
            )
            natures.append(nature)

        def work(store):
            jobs = store.add(specs, request)
            for job, nature in zip(jobs, natures, strict=True):
                self.world.natures.setdefault(job.id, nature)
            return [job.id for job in jobs]

        async def call():
            ids = await self.ask(f"submit {request}", work)
            if isinstance(ids, LorayError) or self.ids.setdefault(request, ids) != ids:
                raise ViolationError(f"the request {request} was answered by {self.ids.get(request)}, then by {ids}")
            if doubts:
                await self._change_mind(ids[0])

        return call

    def wish(self):
        verb = self.random.choice(["cancel", "pause", "resume", "retry", "pause", "resume"])
        number = self.random.random()

        async def call():
            ids = [job_id for some in self.ids.values() for job_id in some]
            if not ids:
                return
            job_id = ids[int(number * len(ids))]
            answer = await self._wish(verb, job_id)
            if verb == "cancel" and not isinstance(answer, LorayError):
                self.cancelled.add(job_id)

        return call

    async def _wish(self, verb, job_id):
        def work(store):
            job = store.get(job_id)
            if verb != "retry":
                return getattr(job_verbs, verb)(store, job).state
            goes_on = job_verbs.may_retry(store, job)
            checkpoint = job_verbs.checkpoint_to_retry(job, from_start=False) if goes_on else None
            return job_verbs.retry(store, job, checkpoint).state

        return await self.ask(f"{verb} {job_id}", work)

    async def _change_mind(self, job_id):
        """Take a job back while it is on its way to an actor, and let it go on: old orders are still on the way."""
        for _ in range(2):
            await asyncio.sleep(self.random.uniform(0.3, 4.0))
            await self._wish("pause", job_id)
            await asyncio.sleep(self.random.uniform(0.1, 3.0))
            await self._wish("resume", job_id)

    # -- accidents -----------------------------------------------------------------------------------------------

    def accident(self):
        self.coming -= 1
        living = [actor for actor in self.world.actors.values() if not actor.dead]
        kind = self.random.random()
        if kind < 0.35 and living:
            self.random.choice(living).die(WITH_ITS_NODE)
        elif kind < 0.45 and living and not self.externally_killed:
            self.externally_killed += 1
            self.random.choice(living).die(BY_ITSELF)
        elif kind < 0.65 and not self.life.over:
            self.life.end()
        elif kind < 0.9:
            self.world.disk.refuses = not self.world.disk.refuses
        elif living and not self.externally_killed:  # it may count as dead
            self.externally_killed += 1
            self.random.choice(living).freeze(self.random.choice(FREEZE_SECONDS) + self.random.uniform(0.0, 8.0))

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self):
        """Play it to its end.

        Raises:
            ViolationError: Something was so that must never be.
        """
        try:
            self.loop.run_until_complete(self._play())
        except DeadlockError as error:
            raise ViolationError(str(error)) from None
        finally:
            if self.orchestrator is not None:
                self.life.over = True
            self.table.crash()
            self.loop.close()

    async def _play(self):
        self.start()
        plans = [
            (self.random.uniform(0.0, self.chaos_seconds / 2), self.submit(number))
            for number in range(self.random.randint(1, 4))
        ]
        plans += [(self.random.uniform(1.0, self.chaos_seconds), self.wish()) for _ in range(self.random.randint(0, 8))]
        for when, call in plans:
            twice = self.random.random() < 0.1
            for _ in range(1 + twice):
                self.loop.call_later(when, self._begin_call, call)
                self.coming += 1
        for _ in range(self.random.randint(0, 6)):
            self.loop.call_later(self.random.uniform(1.0, self.chaos_seconds), self.accident)
            self.coming += 1
        while self.loop.now < self.chaos_seconds and (self.coming or self._open_jobs()):
            await self._sleep(1.0)
        self.world.chaos = self.world.disk.refuses = False
        if self.life is not None:
            self.life.steps = None
        while not await self._is_over():
            if self.loop.now > MOST_SECONDS:
                raise ViolationError(f"not over after {MOST_SECONDS:.0f} s: {self._standing()}")
            await self._sleep(1.0)
        check_ends(self)

    def _begin_call(self, call):
        async def watched():
            try:
                await call()
            except Exception as error:
                self.raised = self.raised or error
            self.coming -= 1

        self.loop.create_task(watched())

    async def _sleep(self, seconds):
        until = self.loop.now + seconds
        while self.loop.now < until:
            if self.raised is not None:
                raise self.raised
            await asyncio.sleep(0.5)

    def _standing(self):
        unanswered = [call.words for call in self.calls if call.answer is None]
        return self.table.rows("SELECT id, name, state, wish, actor, waiting_for FROM jobs"), unanswered

    async def _is_over(self):
        """Every call is answered and every job has ended; who was paused is let go on."""
        if any(call.answer is None for call in self.calls):
            return False
        open_jobs = self._open_jobs()
        for job_id, state in open_jobs:
            if state == "PAUSED":
                await self._wish("resume", job_id)
        return not open_jobs

    def _open_jobs(self):
        return self.table.rows("SELECT id, state FROM jobs WHERE state IN ('QUEUED', 'RUNNING', 'PAUSED')")


def play(seed, table, patch):
    """Play one history; returns what has happened in it.

    Raises:
        ViolationError: Something was so that must never be; it says how to see it again.
    """
    table.begin(patch)
    history = History(seed, table, patch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what the dead had not begun is never awaited
            history.run()
    except Exception as error:
        told = "\n".join(history.world.told[-60:])
        again = f"LORAY_HISTORY={seed} .venv/bin/pytest -s -n0 {TEST} -k one_history"
        raise ViolationError(f"history {seed}: {error}\n\nlast of it:\n{told}\n\nto see it again: {again}") from error
    return history.world.told
