"""Simulated actors, the disk that they write to, and the Ray that stands between them and the orchestrator."""

import types
from dataclasses import dataclass, field, replace

import ray

from gpu_actor.contract.orders import Attach, Detach, Finish, Forget
from gpu_actor.contract.report import ActorPhase, ActorReport, TenantReport, TenantState
from orchestrator.cluster.connection import NAMESPACE

BY_ITSELF = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
WITH_ITS_NODE = "The actor died because its node has died. Node Id: 7f"
NODES = [{"NodeID": "a" * 56, "Alive": True, "Resources": {"node:__internal_head__": 1.0}}]
_TURN_SECONDS = 0.4  # of an actor's training loop


class ViolationError(AssertionError):
    """Something that must never be so was so."""


@dataclass
class Nature:
    """What is in a job.

    Attributes:
        total: Its optimizer steps.
        fails_at: Step at which it fails by itself; 0: never.
        kills_at: Step at which it kills the actor's process, each time; 0: never.
    """

    total: int
    fails_at: int = 0
    kills_at: int = 0


@dataclass
class Disk:
    """The output folders.

    Attributes:
        checkpoints: By job, the step of the newest.
        adapters: Jobs whose adapters are whole.
        refuses: Whether nothing can be written at present.
    """

    checkpoints: dict[str, int] = field(default_factory=dict)
    adapters: set[str] = field(default_factory=set)
    refuses: bool = False


class Actor:
    """One actor: its process, its reports, and the jobs that train there."""

    def __init__(self, world, name):
        self.world, self.name, self.boot = world, name, f"boot of {name}"
        self.dead = None  # the words of Ray
        self.frozen, self.held = False, []  # whether its process is stopped, and what it then does not come to
        self.phase = ActorPhase.LOADING
        self.tenants = {}
        self.attempts = {}
        self.begun = set()  # (job, attempt)
        self.looks = []  # (time, report)
        self.turns = False  # whether its training loop has something to do
        random = world.random
        world.loop.call_later(random.uniform(0.2, 3.0), self._loaded)
        if world.chaos and random.random() < 0.05:
            world.loop.call_later(random.uniform(0.0, 3.0), self.die, BY_ITSELF)

    def _loaded(self):
        if not self.dead and not self.holds(self._loaded):
            self.phase = ActorPhase.READY

    def die(self, words, job_id=None):
        if not self.dead:
            if words == BY_ITSELF:
                self.world.killers[self.name] = job_id
            self.dead = words
            self.world.note(f"{self.name} dies: {words}")
            self._thaw()

    def freeze(self, seconds):
        self.world.note(f"{self.name} is stopped for {seconds:.1f} s")
        self.frozen = True
        self.world.killers[self.name] = None
        self.world.loop.call_later(seconds, self._thaw)

    def _thaw(self):
        self.frozen, held, self.held = False, self.held, []
        for callback, arguments in held:
            self.world.loop.call_soon(callback, *arguments)

    def holds(self, callback, *arguments):
        """Whether its process is stopped: the callback comes when it goes on, or is dead."""
        if self.frozen:
            self.held.append((callback, arguments))
        return self.frozen

    # -- what it is told -----------------------------------------------------------------------------------------

    def carry_out(self, order):
        match order:
            case Attach(spec, attempt):
                if attempt <= self.attempts.get(spec.job_id, 0):
                    return
                self.attempts[spec.job_id] = attempt
                self._leave(spec.job_id, TenantState.DETACHED)  # an earlier attempt
                self.tenants[spec.job_id] = TenantReport(spec.job_id, attempt, TenantState.PREPARING)
                self.world.loop.call_later(self.world.random.uniform(0.0, 1.5), self._prepared, spec.job_id, attempt)
            case Detach(job_id, keep, attempt):
                if attempt >= self.attempts.get(job_id, 0):
                    self.attempts[job_id] = attempt
                    self._leave(job_id, TenantState.DETACHED if keep else TenantState.CANCELLED)
            case Finish(job_id, _):
                self._leave(job_id, TenantState.SUCCEEDED)
            case Forget(job_id, attempt):
                tenant = self.tenants.get(job_id)
                if tenant is not None and tenant.attempt <= attempt and tenant.state not in _ACTIVE:
                    del self.tenants[job_id]

    def _leave(self, job_id, state):
        tenant = self.tenants.get(job_id)
        if tenant is None or tenant.state not in _ACTIVE:
            return
        if state is TenantState.DETACHED and tenant.state is TenantState.TRAINING:
            self.world.disk.checkpoints[job_id] = tenant.step
        self._set(job_id, replace(tenant, state=state))

    def _set(self, job_id, tenant):
        self.tenants[job_id] = tenant
        if tenant.state not in _ACTIVE:
            self.world.ended[job_id, tenant.attempt] = self.world.loop.now, tenant.state

    def report(self):
        """As it was up to a second ago."""
        now = self.world.loop.now
        tenants = tuple(self.tenants.values())
        self.looks.append((now, ActorReport(self.name, self.boot, self.phase, tenants=tenants)))
        lie = self.world.random.uniform(0.0, 1.0) if self.world.chaos else 0.0
        return next(look for when, look in reversed(self.looks) if when <= now - lie or (when, look) == self.looks[0])

    def stop(self):
        for job_id in list(self.tenants):
            self._leave(job_id, TenantState.DETACHED)

    # -- training ------------------------------------------------------------------------------------------------

    def _prepared(self, job_id, attempt):
        if self.holds(self._prepared, job_id, attempt):
            return
        tenant = self.tenants.get(job_id)
        if self.dead or tenant is None or (tenant.attempt, tenant.state) != (attempt, TenantState.PREPARING):
            return
        if (job_id, attempt) in self.begun:
            raise ViolationError(f"{self.name} begins with attempt {attempt} of {job_id} twice")
        self.begun.add((job_id, attempt))
        step, total = self.world.disk.checkpoints.get(job_id, 0), self.world.natures[job_id].total
        self.tenants[job_id] = replace(tenant, state=TenantState.TRAINING, step=step, total_steps=total)
        self.world.check_one_trains(job_id)
        if not self.turns:
            self.turns = True
            self.world.loop.call_later(_TURN_SECONDS, self._turn)

    def _turn(self):
        if self.holds(self._turn):
            return
        self.turns = not self.dead and any(t.state is TenantState.TRAINING for t in self.tenants.values())
        if not self.turns:
            return
        self.world.loop.call_later(_TURN_SECONDS, self._turn)
        for job_id, tenant in list(self.tenants.items()):
            if tenant.state is TenantState.TRAINING and not self.dead:
                self._train(job_id, tenant)

    def _train(self, job_id, tenant):
        world, nature = self.world, self.world.natures[job_id]
        world.check_one_trains(job_id)
        step = tenant.step + 1
        if step == nature.kills_at:
            self.die(BY_ITSELF, job_id)
            return
        changes = {"step": step}
        if step == nature.fails_at:
            changes = {"state": TenantState.FAILED, "reason": "it is poisoned"}
        elif step % 3 == 0 or step >= nature.total:
            if world.disk.refuses:
                return  # the job waits
            world.disk.checkpoints[job_id] = step
            if step >= nature.total:
                world.disk.adapters.add(job_id)
                changes["state"] = TenantState.SUCCEEDED
        self._set(job_id, replace(tenant, **changes))


_ACTIVE = (TenantState.PREPARING, TenantState.TRAINING)


class World:
    """The actors, the disk, and what becomes of calls.

    Attributes:
        chaos: Whether calls are lost, doubled and late, and looks lie.
        natures: By job id.
        told: What has happened, in words.
        ended: By job and attempt, when that ended on its actor, and how.
        killers: By actor whose process died by itself, or was stopped and may count as dead, the job that did it; None
            if none did. Some die before anybody has heard that their base model is loaded.
    """

    def __init__(self, loop, random):
        self.loop, self.random, self.chaos = loop, random, True
        self.actors, self.natures, self.told, self.disk = {}, {}, [], Disk()
        self.ended = {}
        self.killers = {}

    def note(self, words):
        self.told.append(f"{self.loop.now:8.3f}  {words}")

    def check_one_trains(self, job_id):
        """Never train two attempts of one job into one folder."""
        where = [
            f"{actor.name} (attempt {actor.tenants[job_id].attempt})"
            for actor in self.actors.values()
            if not actor.dead and job_id in actor.tenants and actor.tenants[job_id].state is TenantState.TRAINING
        ]
        if len(where) > 1:
            raise ViolationError(f"{job_id} trains twice: {' and '.join(where)}")

    def call(self, actor, method, arguments):
        """A call over a network: it may be lost, doubled, late, and overtaken by the next."""
        answer, random = self.loop.create_future(), self.random
        fate = random.random() if self.chaos else 1.0
        if fate < 0.05:
            self.loop.call_later(
                random.uniform(0.1, 4.0), _fail, answer, ray.exceptions.ActorUnavailableError("x", None)
            )
            return answer
        delay = random.uniform(2.0, 8.0) if fate < 0.10 else random.uniform(0.001, 0.3)
        self.loop.call_later(delay, self._arrive, actor, method, arguments, answer)
        if fate > 0.95 and self.chaos:
            self.loop.call_later(delay + random.uniform(0.0, 8.0), self._arrive, actor, method, arguments, None)
        return answer

    def _arrive(self, actor, method, arguments, answer):
        if actor.holds(self._arrive, actor, method, arguments, answer):
            return
        if actor.dead:
            if answer is not None:
                _fail(answer, died(actor))
            return
        result = getattr(actor, method)(*arguments)
        if answer is not None and not (self.chaos and self.random.random() < 0.02):
            self.loop.call_later(self.random.uniform(0.001, 0.1), _set, answer, result)
        elif answer is not None:
            self.loop.call_later(3.0, _fail, answer, ray.exceptions.ActorUnavailableError("lost", None))

    def double_of_ray(self):
        """What the fleet wants of Ray."""

        class Handle:
            def __init__(self, actor):
                self.actor = actor

            def __getattr__(handle, method):
                return types.SimpleNamespace(remote=lambda *arguments: self.call(handle.actor, method, arguments))

        class Class:
            def options(self, **options):
                self.name = options["name"]
                return self

            def remote(cls, *_):
                actor = self.actors[cls.name] = Actor(self, cls.name)
                return Handle(actor)

        def get_actor(name, namespace):
            if name not in self.actors or self.actors[name].dead:
                raise ValueError(name)
            return Handle(self.actors[name])

        def list_named_actors(all_namespaces):
            return [{"name": a.name, "namespace": NAMESPACE} for a in self.actors.values() if not a.dead]

        def kill(handle, no_restart):
            self.loop.call_later(self.random.uniform(0.0, 1.0), handle.actor.die, "killed by `ray.kill`")

        return types.SimpleNamespace(
            nodes=lambda: NODES,
            remote=lambda _: Class(),
            get_actor=get_actor,
            kill=kill,
            util=types.SimpleNamespace(list_named_actors=list_named_actors),
            exceptions=ray.exceptions,
        )


def died(actor):
    error = ray.exceptions.ActorDiedError()
    error.error_msg = actor.dead
    return error


def _fail(answer, error):
    if not answer.done():
        answer.set_exception(error)


def _set(answer, result):
    if not answer.done():
        answer.set_result(result)
