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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gpu_actor.actor import GpuActor
from gpu_actor.contract.messages import one_line, short_model_name
from gpu_actor.contract.report import ActorReport
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.connection import NAMESPACE
from orchestrator.cluster.member import Loss, LossKind, Member
from orchestrator.cluster.node_gpus import NodeGpus
from orchestrator.cluster.places import Slot, configured_slots
from orchestrator.scheduler.view import ActorState, ActorView
from orchestrator.store.records import ActorRecord
from orchestrator.store.store import Store

logger = logging.getLogger("loray.fleet")

START_SECONDS = 120.0  # to get its resources and a process; loading the base model is not limited
SILENCE_SECONDS = 60.0
STOP_SECONDS = 60.0
BLOCK_SECONDS = 60.0
BAR_SECONDS = 600.0  # that a place does not try again to load a base model which it could not
_POLL_SECONDS = 2.0
_CALL_SECONDS = 5.0
_MOST_DEATHS = 3  # of actors in a row that die while they load one base model


class Fleet:
    """All actors of the cluster."""

    def __init__(self, config: ClusterConfig, store: Store, env_vars: dict[str, str]) -> None:
        """Nothing is started or looked for yet.

        Args:
            config: The cluster file.
            store: Where the names of the actors are kept.
            env_vars: Environment of the actors.
        """
        self._config, self._store, self._env_vars = config, store, env_vars
        self.slots: dict[str, Slot] = {}
        self.members: dict[str, Member] = {}  # by name
        self._gone: set[str] = set()  # slots whose node is gone
        self._limits: dict[str, int] = {}
        self.gpus = NodeGpus()
        self._names: dict[str, str] = {}  # slot -> what its accelerator calls itself
        self._blocked: dict[str, tuple[str, float]] = {}  # slot -> reason, until
        self._barred: dict[tuple[str, str], tuple[str, float]] = {}  # slot and base model -> reason, until
        self._deaths: Counter[tuple[str, str]] = Counter()  # ... -> actors in a row that died while loading it

    # -- places --------------------------------------------------------------------------------------------------

    def discover(self) -> None:
        """Look for places. One whose node is gone stays known, so that no job is rejected for want of it."""
        nodes = ray.nodes()
        actors = self._config.actors
        found = configured_slots(actors, nodes)
        if isinstance(actors, str) and not any(slot.settings.num_gpus for slot in found):
            # Without GPUs `auto` means the CPU; but not when they are only gone for the moment.
            found = [] if any(slot.settings.num_gpus for slot in self.slots.values()) else found
        self.gpus.look(nodes)
        for slot in found:
            self.slots[slot.id] = replace(slot, device_name=self._names.get(slot.id)).on(self.gpus.at(slot.node_id))
        self._gone = set(self.slots) - {slot.id for slot in found}

    def views(self) -> tuple[ActorView, ...]:
        """Every place as the scheduler sees it."""
        there = self.by_place()
        return tuple(self._view(slot, there.get(slot.id)) for slot in self.slots.values())

    def _view(self, slot: Slot, member: Member | None) -> ActorView:
        state, reason = self._state(slot.id, member)
        return replace(
            slot.view,
            name=member.name if member else slot.id,
            state=state,
            base_model=member.base_model if member else None,
            memory_limit=self._limits.get(slot.id, slot.memory_limit),
            reason=reason,
            barred={base: why for base in self._bases_barred(slot.id) if (why := self.barred(slot.id, base))},
        )

    def _state(self, slot_id: str, member: Member | None) -> tuple[ActorState, str | None]:
        if member is None:
            reason, until = self._blocked.get(slot_id, ("", 0.0))
            if slot_id in self._gone:
                return ActorState.BLOCKED, "its node is gone"
            if time.monotonic() < until:
                return ActorState.BLOCKED, reason
            return ActorState.EMPTY, None
        if member.trouble:
            return ActorState.BLOCKED, member.trouble
        return (ActorState.READY if member.ready else ActorState.STARTING), None

    def _bases_barred(self, slot_id: str) -> list[str]:
        return [base for slot, base in self._barred if slot == slot_id]

    def barred(self, slot_id: str, base_model: str) -> str | None:
        """Why a base model is not loaded in a place for the time being: it could not be a short while ago."""
        reason, until = self._barred.get((slot_id, base_model), ("", 0.0))
        return reason if time.monotonic() < until else None

    def give_up(self, base_model: str) -> list[str]:
        """The places where a base model could not be loaded, with the reason, if no other may host it; else none.

        They are then free to try again, for jobs that come after whatever was wrong was mended.
        """
        may = [slot.id for slot in self.slots.values() if slot.settings.base_model in (None, base_model)]
        reasons = {slot_id: self.barred(slot_id, base_model) for slot_id in may}
        if not all(reasons.values()):
            return []
        for slot_id in may:
            del self._barred[slot_id, base_model]
        return [f"{slot_id}: {reason}" for slot_id, reason in reasons.items()]

    def by_place(self) -> dict[str, Member]:
        """The actors by their places."""
        return {member.slot.id: member for member in self.members.values()}

    def at(self, slot_id: str) -> Member | None:
        """The actor in a place."""
        return next((member for member in self.members.values() if member.slot.id == slot_id), None)

    # -- starting and ending -------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take back the actors that an earlier process of the orchestrator started; end those that nobody knows."""
        recorded = {record.name: record for record in self._store.actors()}
        for name in set(recorded) | set(_stray_actors()):
            record = recorded.get(name)
            slot = self.slots.get(record.slot) if record else None
            try:
                handle = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                self._store.remove_actor(name)
                continue
            if record is None or slot is None:
                logger.warning("ending actor %s: no place of this cluster is its own", name)
                ray.kill(handle, no_restart=True)
                self._store.remove_actor(name)
                continue
            logger.info("adopted actor %s", name)
            self.members[name] = Member(name, slot, record.base_model, handle)

    def start(self, slot_id: str, base_model: str) -> None:
        """Host a base model in a place. An actor that is there ends; it must not have an active job."""
        old = self.at(slot_id)
        if old is not None:
            self.end(old.name)
        slot = self.slots[slot_id]
        name = f"{short_model_name(base_model)}@{slot_id}#{secrets.token_hex(2)}"
        self._store.add_actor(ActorRecord(name, slot_id, base_model))
        where = NodeAffinitySchedulingStrategy(slot.node_id, soft=False) if slot.node_id else "DEFAULT"
        try:
            handle = (
                ray.remote(GpuActor)
                .options(
                    name=name,
                    namespace=NAMESPACE,
                    lifetime="detached",
                    num_cpus=0,
                    num_gpus=slot.settings.num_gpus,
                    max_restarts=0,
                    max_task_retries=0,
                    scheduling_strategy=where,
                    runtime_env={"env_vars": self._env_vars},
                )
                .remote(
                    slot.options(
                        name, base_model, self._config.trust_remote_code, self._config.allow_pickle
                    ).model_dump()
                )
            )
        except Exception as error:
            self._store.remove_actor(name)
            self._block(slot_id, f"its actor cannot be started ({one_line(error)})")
            return
        self.members[name] = Member(name, slot, base_model, handle, started=time.monotonic())

    def end(self, name: str) -> None:
        """End an actor at once and forget it."""
        member = self.members.pop(name)
        if member.asked is not None:
            member.asked.cancel()
        ray.kill(member.handle, no_restart=True)
        self._store.remove_actor(name)

    async def stop(self) -> list[Member]:
        """Let every actor write its checkpoints, and end all; returns them with their last reports."""
        members = list(self.members.values())
        await asyncio.gather(*(self._stop(member) for member in members))
        for member in members:
            self.end(member.name)
        return members

    async def _stop(self, member: Member) -> None:
        if not member.ready:
            return  # it has nothing to write yet
        try:
            await asyncio.wait_for(member.handle.stop.remote(), STOP_SECONDS)
            member.report = await asyncio.wait_for(member.handle.report.remote(), _CALL_SECONDS)
        except Exception as error:
            logger.warning("actor %s did not stop in order: %s", member.name, one_line(error))

    def _block(self, slot_id: str, reason: str) -> None:
        self._blocked[slot_id] = (reason, time.monotonic() + BLOCK_SECONDS)

    # -- talking -------------------------------------------------------------------------------------------------

    async def poll(self) -> list[Loss]:
        """Ask every actor for its report, and wait a little for the answers; returns the actors that are lost."""
        for member in self.members.values():
            member.fresh = False
            if member.asked is None:
                member.asked = asyncio.ensure_future(_answer(member.handle.report.remote()))
        asked = [member.asked for member in self.members.values() if member.asked is not None]
        if asked:
            await asyncio.wait(asked, timeout=_POLL_SECONDS)
        losses = [loss for member in list(self.members.values()) if (loss := self._hear(member))]
        for loss in losses:
            logger.warning("actor %s is lost: %s", loss.name, loss.reason)
            self.end(loss.name)
        return losses

    def _hear(self, member: Member) -> Loss | None:
        """Take in an actor's answer; a loss if it is gone for good."""
        if member.asked is not None and member.asked.done():
            asked, member.asked = member.asked, None
            try:
                return self._answered(member, asked.result())
            except ray.exceptions.ActorUnavailableError as error:
                member.trouble = f"does not answer ({one_line(error)})"
            except (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError) as error:
                return self._died(member, error)
            except Exception as error:
                member.trouble = f"its report failed ({one_line(error)})"
        silent = time.monotonic() - member.heard
        if member.report is None and silent > START_SECONDS:
            gpus = member.slot.settings.num_gpus
            reason = f"no node gave it a process{f' with {gpus:g} GPU' if gpus else ''} within {START_SECONDS:.0f} s"
            self._block(member.slot.id, f"{reason}; `ray status` shows what is free")
            return _loss(member, LossKind.UNSTARTED, reason)
        if member.report is not None and silent > SILENCE_SECONDS:
            return _loss(member, LossKind.SILENT, f"it did not answer for {SILENCE_SECONDS:.0f} s")
        if member.report is not None and silent > _CALL_SECONDS:
            member.trouble = member.trouble or f"has not answered for more than {_CALL_SECONDS:.0f} s"
        return None

    def _answered(self, member: Member, report: ActorReport) -> Loss | None:
        member.report, member.heard, member.fresh, member.trouble = report, time.monotonic(), True, None
        self._limits[member.slot.id] = report.memory_limit
        if report.device_name:
            self._names[member.slot.id] = report.device_name
            member.slot = replace(member.slot, device_name=report.device_name)
        if report.state == "failed":
            return self._unloadable(member, report.reason or "no reason given")
        if member.ready:
            self._deaths[member.slot.id, member.base_model] = 0
            self._barred.pop((member.slot.id, member.base_model), None)
            if member.started is not None and member.load_seconds is None:
                member.load_seconds = time.monotonic() - member.started
        return None

    def _died(self, member: Member, error: Exception) -> Loss:
        reason = f"its process died: {one_line(error)}"
        if member.ready:
            return _loss(member, LossKind.DIED, reason)
        tries = member.slot.id, member.base_model
        self._deaths[tries] += 1
        if self._deaths[tries] < _MOST_DEATHS:
            return _loss(member, LossKind.DIED, reason)
        self._deaths[tries] = 0
        return self._unloadable(member, f"{_MOST_DEATHS} actors in a row died while loading it; {reason}")

    def _unloadable(self, member: Member, reason: str) -> Loss:
        self._barred[member.slot.id, member.base_model] = (reason, time.monotonic() + BAR_SECONDS)
        return _loss(member, LossKind.UNLOADABLE, reason)

    async def tell(self, name: str, method: str, *arguments: Any) -> None:
        """Call a control method of an actor. A failure is only logged: the next tick sees what is missing."""
        member = self.members.get(name)
        if member is None:
            return
        try:
            await asyncio.wait_for(getattr(member.handle, method).remote(*arguments), _CALL_SECONDS)
        except Exception as error:
            logger.warning("%s of actor %s: %s", method, name, one_line(error))


def _stray_actors() -> Sequence[str]:
    """Names of all living actors that look like those of a fleet."""
    found: Sequence[Mapping[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return [a["name"] for a in found if a["namespace"] == NAMESPACE and re.search(r"@.*#[0-9a-f]{4}$", a["name"])]


async def _answer(reference: Any) -> ActorReport:
    report: ActorReport = await reference
    return report


def _loss(member: Member, kind: LossKind, reason: str) -> Loss:
    return Loss(member.name, member.slot.id, member.base_model, kind, reason)
