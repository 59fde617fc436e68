"""Learns from what the actors measure, and sets their token budgets by it."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_actor.contract.orders import SetTokenBudget
from orchestrator.cluster.fleet import Fleet
from orchestrator.cluster.member import Instruction
from orchestrator.control.snapshot import SnapshotBuilder
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.profiles import Profiles, token_budget
from orchestrator.store.records import JobRecord


class ActorTuning:
    """Of the actors of one orchestrator."""

    def __init__(self, fleet: Fleet, bases: BaseCatalog, profiles: Profiles, snapshots: SnapshotBuilder) -> None:
        """Nothing is learned yet.

        Args:
            fleet: The actors.
            bases: Descriptions of base models.
            profiles: Where the measurements go.
            snapshots: Counts the bytes of adapters, as plans do.
        """
        self._fleet, self._bases, self._profiles, self._snapshots = fleet, bases, profiles, snapshots

    def learn(self) -> None:
        """Take in what the actors have measured."""
        members = self._fleet.members.values()
        for member in members:
            report, base = member.report, self._bases.described(member.base_model)
            if report is None or base is None or not (member.fresh and member.ready):
                continue
            self._profiles.learn(member.place, base, report)
            if member.load_seconds is not None:
                self._profiles.loaded(member.place, base.ref, member.load_seconds)
        self._profiles.forget_actors({member.report.boot_id for member in members if member.report})
        self._profiles.save_now_and_then()

    def token_budgets(self, running: Mapping[str, Mapping[str, JobRecord]]) -> list[Instruction]:
        """Token budgets that leave room for every adapter that is on an actor, or was just given to it.

        Args:
            running: Running jobs by actor and id.
        """
        instructions = []
        for member in self._fleet.members.values():
            report, base = member.report, self._bases.described(member.base_model)
            profile = self._profiles.of(member.place, member.base_model)
            if report is None or base is None or profile is None or not report.token_budget:
                continue
            jobs = running.get(member.name, {}).values()
            adapters = sum(self._snapshots.adapter_bytes(job, base, member.place.device) for job in jobs)
            room = report.memory_limit - profile.memory_model(member.place).fixed_bytes - adapters
            budget = token_budget(profile, member.place, room, report.token_budget)
            if budget < report.token_budget or budget not in (report.token_budget, member.sent_budget):
                member.sent_budget = budget
                instructions.append(Instruction(member.name, SetTokenBudget(budget)))
        return instructions
