"""A cluster on paper: a real store, and actors whose reports are written by hand. No Ray, nothing trains."""

import math

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.description import BaseDescription, LinearShape
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import ActorPhase, ActorReport
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.fleet import Fleet
from orchestrator.cluster.member import Member
from orchestrator.cluster.places import listed_places
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.snapshot import SnapshotBuilder
from orchestrator.jobs.job import JobSpec, QueueConfig
from orchestrator.jobs.owner import OPERATOR
from orchestrator.knowledge.base_catalog import BaseCatalog, _key
from orchestrator.knowledge.profiles import Profiles
from orchestrator.owners.limits import OwnerLimits
from orchestrator.scheduler.estimate import prior_memory
from orchestrator.scheduler.policy import DEFAULT
from orchestrator.store.store import Store

NODES = [{"NodeID": "a" * 8, "Alive": True, "Resources": {"node:__internal_head__": 1.0}}]
TINY = "/models/tiny"


def describe(ref=TINY):
    """A base model of two layers."""
    linears = tuple(LinearShape(f"model.layers.{layer}.mlp.up_proj", 64, 100) for layer in range(2))
    return BaseDescription(ref, "llama", linears, 64, 2, 128, 100_000)


def fixed_bytes(base, shape):
    """Bytes of an actor without any job, as guessed: its base model, a full shared batch, the reserve."""
    guess = prior_memory(base, shape)
    return math.ceil(guess.fixed_bytes + guess.bytes_per_token * shape.token_budget)


class House:
    """A store, places for actors, and the reconciler between them."""

    def __init__(self, folder, policy=DEFAULT, actors=({},), **fields):
        self.path = folder
        config = ClusterConfig(storage=str(folder), actors=list(actors), **fields)
        self.store = Store(config.database_url)
        self.fleet = Fleet(config, self.store, {})
        self.fleet.places |= {place.id: place for place in listed_places(config.actors, NODES)}
        self.bases, self.profiles = BaseCatalog({}), Profiles(self.store)
        self.retried, self.over = [], []
        self.config = config
        self.snapshots = SnapshotBuilder(
            self.store, self.fleet, self.bases, self.profiles, OwnerLimits(config, self.store)
        )
        self.reconciler = Reconciler(
            self.store,
            self.fleet,
            self.bases,
            lambda job: None,
            self.retried.append,
            self.over.append,
            self.profiles,
            self.snapshots,
            policy,
        )

    def host(self, name, place="cpu:0", base_model=TINY, *, described=True):
        """An actor in a place, whose base model is described or not yet."""
        self.fleet.members[name] = Member(name, self.fleet.places[place], base_model, handle=None)
        if described:
            self.describe(base_model)

    def describe(self, base_model):
        """A base model has been described."""
        self.bases._descriptions[_key(base_model)] = describe(base_model)

    def submit(
        self, name, base_model=TINY, priority=0, max_retries=1, out=None, r=8, data=None, owner=OPERATOR, **training
    ):
        """Accept a job; returns its id."""
        spec = JobSpec(
            name=name,
            base_model=base_model,
            dataset=DatasetConfig(path=str(data or f"/data/{name}.jsonl")),
            lora=LoraConfig(r=r),
            training=TrainingConfig(**training),
            queue=QueueConfig(priority=priority, max_retries=max_retries),
            output_dir=str(self.path / (out or f"out-{name}")),
        )
        return self.store.add([spec], f"request of {name} {out}", owner)[0].id

    def report(self, name, *tenants, boot="boot", **fields):
        """An actor reports; returns the instructions that follow."""
        member = self.fleet.members[name]
        member.report, member.fresh = ActorReport(name, boot, ActorPhase.READY, tenants=tenants, **fields), True
        return self.reconciler.observe()

    def plan(self):
        """What is planned for the cluster as it is now."""
        return self.reconciler._replanner.plan(self.reconciler.snapshot())

    def learn(self):
        """What the actors have measured is taken in."""
        self.reconciler.tuning.learn()

    def token_budgets(self):
        """The instructions that set token budgets now."""
        return self.reconciler.tuning.token_budgets(self.reconciler.running())

    def carry_out(self, plan):
        """A plan is recorded; returns the instructions that carry it out."""
        return self.reconciler.execution.record(plan)
