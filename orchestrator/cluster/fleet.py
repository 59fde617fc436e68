"""The actors on Ray: where they can be, starting, polling, replacing and adopting them.

The only module that makes Ray actors of `GpuActor`. Actors are detached and named, so that they outlive the
orchestrator's process; Ray never restarts one and never repeats a call, because only the orchestrator knows what a
second start would mean.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gpu_actor.actor import GpuActor
from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.contract.messages import one_line, short_model_name
from gpu_actor.contract.orders import Ask, Withdraw
from gpu_actor.contract.questions import Answer, AskRequest
from gpu_actor.contract.report import ActorPhase, ActorReport
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.connection import NAMESPACE
from orchestrator.cluster.head_link import HeadLink
from orchestrator.cluster.member import Instruction, Loss, LossKind, Member, cause_of_death, is_nobodys_death
from orchestrator.cluster.node_gpus import NodeGpus
from orchestrator.cluster.obstacles import Obstacles
from orchestrator.cluster.places import Place, configured_places
from orchestrator.scheduler.view import ActorState, ActorView
from orchestrator.store.records import ActorRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

logger = logging.getLogger("loray.fleet")

START_SECONDS = 120.0  # to get its resources and a process; loading the base model is not limited
SILENCE_SECONDS = 60.0
STOP_SECONDS = 60.0
_POLL_SECONDS = 2.0
_NODES_SECONDS = 2.0  # between two looks at the nodes; each is a call to Ray's head that nothing else runs beside
_CALL_SECONDS = 5.0
_ENDS = {ActorPhase.CRASHED: LossKind.DIED, ActorPhase.DEVICE_GONE: LossKind.DEVICE}


class Fleet:
    """All actors of the cluster."""

    def __init__(self, config: ClusterConfig, store: Store, env_vars: dict[str, str]) -> None:
        """Nothing is started yet, nor any place discovered.

        Args:
            config: The cluster file.
            store: Where the names of the actors are kept.
            env_vars: Environment of the actors.
        """
        self._config, self._store, self._env_vars = config, store, env_vars
        self._nodes: list[dict[str, Any]] = []
        self._nodes_due = 0.0  # when they are asked for again (monotonic)
        self.places: dict[str, Place] = {}
        self.members: dict[str, Member] = {}  # by name
        self.gpus = NodeGpus()
        self.obstacles = Obstacles()
        self._gone: set[str] = set()  # places whose node is gone
        self._limits: dict[str, int] = {}  # place -> bytes that its latest actor might use
        self._device_names: dict[str, str] = {}  # place -> what its accelerator calls itself

    # -- places --------------------------------------------------------------------------------------------------

    def discover(self) -> None:
        """Bring `places` up to date. One whose node is gone stays, so that no job is rejected for want of it."""
        if (now := time.monotonic()) >= self._nodes_due:
            self._nodes, self._nodes_due = ray.nodes(), now + _NODES_SECONDS
        nodes = self._nodes
        actors = self._config.actors
        places = configured_places(actors, nodes)
        if isinstance(actors, str) and not any(place.settings.num_gpus for place in places):
            # Without GPUs `auto` means the CPU; but not when they are only gone for the moment.
            places = [] if any(place.settings.num_gpus for place in self.places.values()) else places
        self.gpus.ask(nodes)
        for place in places:
            named = replace(place, device_name=self._device_names.get(place.id))
            self.places[place.id] = named.on(self.gpus.at(place.node_id))
        self._gone = set(self.places) - {place.id for place in places}

    def views(self) -> tuple[ActorView, ...]:
        """Every place as the scheduler sees it."""
        members = self.by_place()
        return tuple(self._view(place, members.get(place.id)) for place in self.places.values())

    def _view(self, place: Place, member: Member | None) -> ActorView:
        state, reason = self._state(place.id, member)
        return replace(
            place.view,
            name=member.name if member else place.id,
            state=state,
            base_model=member.base_model if member else None,
            memory_limit=self._limits.get(place.id, place.memory_limit),
            reason=reason,
            barred=self.obstacles.bars(place.id),
        )

    def _state(self, place_id: str, member: Member | None) -> tuple[ActorState, str | None]:
        """The state of a place, and the reason if it is blocked."""
        if member is None:
            reason = "its node is gone" if place_id in self._gone else self.obstacles.blocked(place_id)
            return (ActorState.EMPTY if reason is None else ActorState.BLOCKED), reason
        if member.trouble:
            return ActorState.BLOCKED, member.trouble
        return (ActorState.READY if member.ready else ActorState.STARTING), None

    def give_up(self, base_model: str) -> list[str]:
        """The places where a base model could not be loaded, with the reason, if no other may host it; else none.

        They are then free to try again, for jobs that come after whatever was wrong was mended.
        """
        hosts = [place.id for place in self.places.values() if place.settings.base_model in (None, base_model)]
        reasons = self.obstacles.lift_if_barred_everywhere(hosts, base_model)
        return [f"{place_id}: {reason}" for place_id, reason in reasons.items()]

    def by_place(self) -> dict[str, Member]:
        """The actors by their places."""
        return {member.place.id: member for member in self.members.values()}

    def at(self, place_id: str) -> Member | None:
        """The actor in a place."""
        return next((member for member in self.members.values() if member.place.id == place_id), None)

    # -- starting and ending -------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take back the actors that an earlier process of the orchestrator started; end those without a place."""
        recorded = {record.name: record for record in self._store.actors()}
        for name in sorted({*recorded, *_living_actors()}):
            record = recorded.get(name)
            place = self.places.get(record.slot) if record else None
            try:
                handle = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                self._store.remove_actor(name)
                continue
            if record is None or place is None:
                logger.warning("ending actor %s: it belongs to no place of this cluster", name)
                ray.kill(handle, no_restart=True)
                self._store.remove_actor(name)
                continue
            logger.info("adopted actor %s", name)
            self.members[name] = Member(name, place, record.base_model, handle)

    def start(self, place_id: str, base_model: str) -> None:
        """Host a base model in a place. An actor that is there ends; it must not have an active job."""
        old = self.at(place_id)
        if old is not None:
            self.end(old.name)
        place = self.places[place_id]
        name = f"{short_model_name(base_model)}@{place_id}#{secrets.token_hex(2)}"
        self._store.add_actor(ActorRecord(name, place_id, base_model))
        strategy = NodeAffinitySchedulingStrategy(place.node_id, soft=False) if place.node_id else "DEFAULT"
        config = self._config
        options = place.options(name, base_model, config.trust_remote_code, config.allow_pickle, config.written_roots)
        try:
            handle = (
                ray.remote(GpuActor)
                .options(
                    name=name,
                    namespace=NAMESPACE,
                    lifetime="detached",
                    num_cpus=0,
                    num_gpus=place.settings.num_gpus,
                    max_restarts=0,
                    max_task_retries=0,
                    enable_task_events=False,  # polls would hide the tasks that people look for
                    scheduling_strategy=strategy,
                    label_selector=None if place.node_id else place.settings.label_selector or None,
                    runtime_env={"env_vars": self._env_vars},
                )
                .remote(options.model_dump(), HeadLink())
            )
        except Exception as error:
            self._store.remove_actor(name)
            self.obstacles.block(place_id, f"its actor cannot be started ({one_line(error)})")
            return
        self.members[name] = Member(name, place, base_model, handle, started_at=time.monotonic())

    def end(self, name: str) -> None:
        """End an actor at once and forget it; nothing happens if that was done before."""
        member = self.members.pop(name, None)
        if member is None:
            return
        if member.request is not None:
            member.request.cancel()
        ray.kill(member.handle, no_restart=True)
        self._store.remove_actor(name)

    async def stop(self) -> list[Member]:
        """Let every actor write its checkpoints, and end all; returns them with their last reports."""
        members = list(self.members.values())
        await asyncio.gather(*(self._stop(member) for member in members))
        await self._store.turn(partial(self._end_all, members))
        return members

    def _end_all(self, members: Sequence[Member]) -> None:
        for member in members:
            self.end(member.name)

    async def _stop(self, member: Member) -> None:
        if not member.ready:
            return  # it has nothing to write yet
        try:
            await asyncio.wait_for(member.handle.stop.remote(), STOP_SECONDS)
            member.report = await asyncio.wait_for(member.handle.report.remote(), _CALL_SECONDS)
        except Exception as error:
            logger.warning("actor %s did not stop in order: %s", member.name, one_line(error))

    # -- talking -------------------------------------------------------------------------------------------------

    async def poll(self) -> list[Loss]:
        """Ask every actor for its report, and wait a little for the answers; returns the lost, who are to be ended."""
        for member in self.members.values():
            member.fresh = False
            if member.request is None:
                member.request = asyncio.ensure_future(_answer(member.handle.report.remote()))
        requests = [member.request for member in self.members.values() if member.request is not None]
        if requests:
            await asyncio.wait(requests, timeout=_POLL_SECONDS)
        losses = [loss for member in list(self.members.values()) if (loss := self._take_in(member))]
        for loss in losses:
            logger.warning("actor %s is lost: %s", loss.name, loss.reason)
        return losses

    def _take_in(self, member: Member) -> Loss | None:
        """Take in an actor's answer, or its silence; a loss if it is gone for good."""
        if member.request is not None and member.request.done():
            request, member.request = member.request, None
            try:
                return self._answered(member, request.result())
            except ray.exceptions.ActorUnavailableError as error:
                member.trouble = f"does not answer ({one_line(error)})"
            except (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError) as error:
                return self._died(member, error)
            except Exception as error:
                member.trouble = f"its report failed ({one_line(error)})"
        return self._silent(member, time.monotonic() - member.answered_at)

    def _silent(self, member: Member, seconds: float) -> Loss | None:
        """An actor has not answered for so long; a loss if that is too long."""
        if member.report is None and seconds > START_SECONDS:
            gpus = member.place.settings.num_gpus
            reason = f"no node gave it a process{f' with {gpus:g} GPU' if gpus else ''} within {START_SECONDS:.0f} s"
            self.obstacles.block(member.place.id, f"{reason}; `ray status` shows what is free")
            return _loss(member, LossKind.UNSTARTED, reason)
        if member.report is not None and seconds > SILENCE_SECONDS:
            return _loss(member, LossKind.SILENT, f"it did not answer for {SILENCE_SECONDS:.0f} s")
        if member.report is not None and seconds > _CALL_SECONDS:
            member.trouble = member.trouble or f"has not answered for more than {_CALL_SECONDS:.0f} s"
        return None

    def _answered(self, member: Member, report: ActorReport) -> Loss | None:
        member.report, member.answered_at, member.fresh, member.trouble = report, time.monotonic(), True, None
        place = member.place
        if report.memory_limit:
            self._limits[place.id] = report.memory_limit
        if report.device_name:
            self._device_names[place.id] = report.device_name
            member.place = replace(place, device_name=report.device_name)
        if report.state is ActorPhase.FAILED:
            return self._unloadable(member, report.reason or "no reason given")
        if report.state in _ENDS:
            return _loss(member, _ENDS[report.state], f"nothing runs on its device any more: {report.reason}")
        if member.ready:
            self.obstacles.loaded(place.id, member.base_model)
            if member.started_at is not None and member.load_seconds is None:
                member.load_seconds = time.monotonic() - member.started_at
        return None

    def _died(self, member: Member, error: Exception) -> Loss:
        logger.warning("actor %s died: %s", member.name, error)
        reason = f"its process died: {cause_of_death(error)}"
        if is_nobodys_death(error) or member.place.node_id in self._dead_nodes():
            return _loss(member, LossKind.NODE, reason)
        if not member.ready:
            deaths = self.obstacles.died_loading(member.place.id, member.base_model)
            if deaths is not None:
                return self._unloadable(member, f"{deaths} actors in a row died while loading it; {reason}")
        return _loss(member, LossKind.DIED, reason)

    @staticmethod
    def _dead_nodes() -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}

    def _unloadable(self, member: Member, reason: str) -> Loss:
        self.obstacles.bar(member.place.id, member.base_model, reason)
        return _loss(member, LossKind.UNLOADABLE, reason)

    def hosts(self, base_model: str) -> tuple[str, ...]:
        """The actors that are ready, answer and host a base model."""
        found = (member for member in self.members.values() if member.base_model == base_model)
        return tuple(member.name for member in found if member.ready and not member.trouble)

    async def ask(self, actor: str, request: AskRequest) -> None:
        """Let an actor begin to answer.

        Raises:
            ClusterUnavailableError: It is gone, or does not take it.
        """
        await self._call(actor, lambda handle: handle.carry_out.remote(Ask(request)))

    async def answers(self, actor: str, request_id: str) -> list[Answer] | None:
        """The answers of an actor as far as they are made; None: it has not begun.

        Raises:
            ClusterUnavailableError: It is gone, or does not answer.
        """
        found: list[Answer] | None = await self._call(actor, lambda handle: handle.answers.remote(request_id))
        return found

    async def withdraw(self, actor: str, request_id: str) -> None:
        """Let an actor drop a request with its answers. One that is gone has dropped it."""
        await self.send(Instruction(actor, Withdraw(request_id)))

    async def _call(self, actor: str, call: Callable[[Any], Any]) -> Any:
        member = self.members.get(actor)
        if member is None:
            raise ClusterUnavailableError(f"the actor {actor}, which was answering, is gone; ask again")
        try:
            return await asyncio.wait_for(call(member.handle), _CALL_SECONDS)
        except Exception as error:
            raise ClusterUnavailableError(
                f"the actor {actor}, which was answering, does not reply ({one_line(error)}); ask again"
            ) from None

    async def send(self, instruction: Instruction) -> bool:
        """Give an actor an order; returns whether it took it. Else it is logged: the next tick sees what is missing."""
        member = self.members.get(instruction.actor)
        if member is None:
            return False
        try:
            await asyncio.wait_for(member.handle.carry_out.remote(instruction.order), _CALL_SECONDS)
        except Exception as error:
            kind = type(instruction.order).__name__
            logger.warning("actor %s did not take the order %s: %s", instruction.actor, kind, one_line(error))
            return False
        return True


def _living_actors() -> Sequence[str]:
    """Names of all living actors of a fleet, by the form of their names."""
    named: Sequence[Mapping[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return [a["name"] for a in named if a["namespace"] == NAMESPACE and re.search(r"@.*#[0-9a-f]{4}$", a["name"])]


async def _answer(reference: Any) -> ActorReport:
    report: ActorReport = await reference
    return report


def _loss(member: Member, kind: LossKind, reason: str) -> Loss:
    return Loss(member.name, member.place.id, member.base_model, kind, reason)
