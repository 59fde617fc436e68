"""What the orchestrator has learned of its devices: their speed and memory, per base model. It outlives restarts.

A profile belongs to a kind of device (an accelerator by its name and share, a CPU with its threads), a base model, a
number format, its quantisation, and whether gradient checkpointing is on. So a second actor of a kind starts with what
the first one has shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.footprint import FORWARD_WORK, base_bytes
from gpu_actor.contract.report import ActorReport, StepSample
from orchestrator.cluster.places import Place
from orchestrator.scheduler.estimate import (
    RESERVE_BYTES,
    MemoryFit,
    SpeedFit,
    device_kind,
    prior_memory,
    prior_speed,
    saturation_tokens,
)
from orchestrator.scheduler.view import MemoryModel, SpeedModel

if TYPE_CHECKING:
    from orchestrator.store.store import Store

_WAYS = ("plain", "checkpointing")  # without and with gradient checkpointing
_SAVE_SECONDS = 10.0  # between two writes
_BELIEVED = 20  # measured steps from which a fit is trusted: by plans, and to set the token budget
_SPREAD = 1.5  # largest batch over smallest, from which a fit can tell a from b
_TOKEN_SHARE = 0.1  # of the largest step's time, from which a fit is trusted to tell tokens from the rest
_LEAST_BUDGET, _MOST_BUDGET = 128, 65_536
_NEWEST = 0.2  # weight of the newest swap in the mean
_HALF_SWAP = 1.0  # seconds, of the half of a swap that was never measured
_CHANGE = 0.2  # a budget that would change by less stays, as long as the memory allows it
_GROWTH = 2  # times the largest batch that was ever measured: beyond that a fit only extrapolates
_BATCH_SHARE = 0.5  # of the room beside a base model that plans leave to shared batches where it is short
_ROOM_USED = 0.9  # of the room that a new budget fills, so that a fit may waver without a change


@dataclass
class Profile:
    """One kind of device with one base model.

    Attributes:
        load_seconds: Latest time to load the base model; None: never measured.
        leave_seconds: From the wish to take a job off to its leaving, averaged; None: never measured.
        start_seconds: From giving a job to an actor to its training there, averaged; None: never measured.
        samples: Steps that were measured.
        smallest: Tokens of the smallest batch measured.
        largest: Tokens of the largest.
        boots: Boot of a living actor -> most tokens of a batch since it started.
    """

    speed: SpeedFit
    memory: MemoryFit
    load_seconds: float | None = None
    samples: int = 0
    smallest: int = 0
    largest: int = 0
    boots: dict[str, int] = field(default_factory=dict)
    leave_seconds: float | None = None
    start_seconds: float | None = None

    def learn(self, boot: str, sample: StepSample, *, sticky: bool) -> None:
        """Take in one shared step.

        Args:
            boot: Of the actor that made it.
            sample: What was measured.
            sticky: Whether memory that was taken once stays taken, as on a CPU: then only the peak of a batch that is
                larger than all before it in that process says something of its tokens.
        """
        self.speed.observe(sample.tokens + FORWARD_WORK * sample.ahead, sample.adapters, sample.seconds)
        if not sticky or sample.tokens > self.boots.get(boot, 0):
            self.memory.observe(sample.tokens, sample.adapter_bytes, sample.peak_bytes)
        self.boots[boot] = max(self.boots.get(boot, 0), sample.tokens)
        self.smallest = min(self.smallest or sample.tokens, sample.tokens)
        self.largest = max(self.largest, sample.tokens)
        self.samples += 1

    def memory_model(self, place: Place) -> MemoryModel:
        """The memory of a place, as plans count it: with the residuals' margin, and the tokens it can be kept to.

        The token budget that an actor has at the moment does not count: it is lowered before a job comes that needs
        the room (`token_budget`). So the cap is that of a new actor.
        """
        model = self.memory.model
        return replace(model, fixed_bytes=model.fixed_bytes + self.memory.margin, token_cap=place.token_budget)

    @property
    def doubt(self) -> float:
        """About the speed: the relative standard error of its fit, infinite before enough steps were measured."""
        return self.speed.doubt if self.samples >= _BELIEVED else math.inf

    def to_dict(self) -> dict[str, Any]:
        """For the store."""
        return {
            "speed": asdict(self.speed.model),
            "memory": asdict(self.memory.model),
            "margin": self.memory.margin,
            "load_seconds": self.load_seconds,
            "leave_seconds": self.leave_seconds,
            "start_seconds": self.start_seconds,
            "samples": self.samples,
            "smallest": self.smallest,
            "largest": self.largest,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """The inverse of `to_dict`: both fits go on from where they were."""
        rest = {key: data[key] for key in ("load_seconds", "samples", "smallest", "largest")}
        rest |= {key: data.get(key) for key in ("leave_seconds", "start_seconds")}  # profiles of old do not have them
        memory = MemoryFit(MemoryModel(**data["memory"]), data.get("margin", 0.0))
        return cls(SpeedFit(SpeedModel(**data["speed"])), memory, **rest)

    @property
    def swap_seconds(self) -> float | None:
        """To take a job off and to go on with it, what was never measured guessed; None: neither was."""
        parts = (self.leave_seconds, self.start_seconds)
        return None if parts == (None, None) else sum(_HALF_SWAP if part is None else part for part in parts)


class Profiles:
    """All profiles, kept in the store."""

    def __init__(self, store: Store | None) -> None:
        """Read what earlier processes have learned; without a store nothing is known, and nothing is kept."""
        self._store = store
        self._profiles = _from_rows(store.profiles()) if store else {}
        self._changed: set[str] = set()
        self._saved = -math.inf

    @classmethod
    def of_earlier_runs(cls, database_url: str) -> Profiles:
        """What earlier processes have learned, to look at alone: the database stays as it is, and need not be there."""
        from orchestrator.store.profile_table import profiles_of_earlier_runs  # not above: it loads SQLAlchemy

        profiles = cls(None)
        profiles._profiles = _from_rows(profiles_of_earlier_runs(database_url))
        return profiles

    def learn(self, place: Place, base: BaseDescription, report: ActorReport) -> None:
        """Take in the steps of one report."""
        if not report.steps:
            return
        key = profile_key(place, base.ref)
        profile = self._profiles.get(key)
        if profile is None:
            memory = idle_memory(place, base, report.memory_idle)
            profile = self._profiles[key] = Profile(SpeedFit(prior_speed(base, place.shape)), MemoryFit(memory))
        for sample in report.steps:
            profile.learn(report.boot_id, sample, sticky=device_kind(place.device) == "cpu")
        self._changed.add(key)

    def loaded(self, place: Place, base_model: str, seconds: float) -> None:
        """An actor has loaded a base model."""
        profile = self._profiles.get(profile_key(place, base_model))
        if profile is not None and profile.load_seconds != seconds:
            profile.load_seconds = seconds
            self._changed.add(profile_key(place, base_model))

    def swapped(self, place: Place, base_model: str, leave: float | None = None, start: float | None = None) -> None:
        """A job was taken off an actor, or has come to train on one, in so many seconds."""
        profile = self._profiles.get(profile_key(place, base_model))
        if profile is not None:
            profile.leave_seconds = _smoothed(profile.leave_seconds, leave)
            profile.start_seconds = _smoothed(profile.start_seconds, start)
            self._changed.add(profile_key(place, base_model))

    def forget_actors(self, living: Set[str]) -> None:
        """Drop what was noted of actors that are gone.

        Args:
            living: Boots of those that are not.
        """
        for profile in self._profiles.values():
            profile.boots = {boot: most for boot, most in profile.boots.items() if boot in living}

    def of(self, place: Place, base_model: str) -> Profile | None:
        """What was measured of a place with a base model."""
        return self._profiles.get(profile_key(place, base_model))

    def of_place(self, place: Place) -> dict[str, Profile]:
        """What was measured of a place, by base model."""
        prefix = profile_key(place, "")
        return {key.removeprefix(prefix): profile for key, profile in self._profiles.items() if key.startswith(prefix)}

    def load_elsewhere(self, base_model: str) -> float | None:
        """Seconds to load a base model, the mean over the kinds of places where that was measured."""
        return _mean([profile.load_seconds for profile in self._of_base(base_model)])

    def swap_elsewhere(self, base_model: str) -> float | None:
        """Seconds of a swap there, likewise."""
        return _mean([profile.swap_seconds for profile in self._of_base(base_model)])

    def _of_base(self, base_model: str) -> list[Profile]:
        ends = tuple(f" {way} {base_model}" for way in _WAYS)  # a model's name may end like another one's
        return [profile for key, profile in self._profiles.items() if key.endswith(ends)]

    def save_now_and_then(self) -> None:
        """Write what has changed, but not at every look: each write waits for the disk."""
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what has changed since the last call."""
        self._saved = time.monotonic()
        if self._changed and self._store:
            self._store.save_profiles({key: self._profiles[key].to_dict() for key in self._changed})
            self._changed.clear()


def _from_rows(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Profile]:
    return {key: Profile.from_dict(values) for key, values in rows.items()}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _smoothed(mean: float | None, latest: float | None) -> float | None:
    if mean is None or latest is None:
        return mean if latest is None else latest
    return mean + _NEWEST * (latest - mean)


def profile_key(place: Place, base_model: str) -> str:
    """The name of a profile in the store."""
    kind = device_kind(place.device)
    settings = place.settings
    if kind == "cpu":
        device = f"{kind}-{place.cpu_threads or 'all'}"
    else:
        device = place.device_name or kind
        device += f" x {settings.num_gpus:g}" if settings.num_gpus < 1 else ""
    numbers = f"{settings.dtype}/{settings.quantization}" if settings.quantization else settings.dtype
    return f"{device} {numbers} {_WAYS[settings.gradient_checkpointing]} {base_model}"


def leaving_room(model: MemoryModel, limit: int | None) -> MemoryModel:
    """A memory model with a cap on shared batches that leaves half of the room beside the base to adapters.

    Args:
        model: With the cap of a new actor.
        limit: Bytes that the actor may use; None: nobody knows.
    """
    if limit is None or model.token_cap is None:
        return model
    most = max(1, int(_BATCH_SHARE * (limit - model.fixed_bytes) / max(1.0, model.bytes_per_token)))
    return model if most >= model.token_cap else replace(model, token_cap=most)


def token_budget(profile: Profile, place: Place, room: float | None, current: int) -> int:
    """The token budget of an actor: where more tokens no longer raise its speed, as far as its memory goes.

    Args:
        profile: What was measured there.
        place: The place. A budget in the cluster file is kept, as far as its memory goes.
        room: Bytes for activations beside all adapters; None: not known.
        current: The budget that it has.
    """
    given = place.settings.token_budget
    least, most = min(given or _LEAST_BUDGET, _LEAST_BUDGET), math.inf if given else float(_MOST_BUDGET)
    wanted = given or current
    if given is None and _tells_budget(profile):
        wanted = min(saturation_tokens(profile.speed.model), max(current, _GROWTH * profile.largest), _MOST_BUDGET)
    if room is not None:
        most = min(most, room / max(1.0, profile.memory.model.bytes_per_token))
        wanted = min(wanted, int(_ROOM_USED * most))
    wanted = max(wanted, least)
    stays = current <= max(most, least) and abs(wanted - current) <= _CHANGE * current
    return current if stays else wanted


def _tells_budget(profile: Profile) -> bool:
    """Whether a fit is trusted to set the token budget: enough was measured, and enough that is different."""
    spread = profile.largest >= _SPREAD * profile.smallest
    return profile.samples >= _BELIEVED and spread and _tells_tokens(profile)


def _tells_tokens(profile: Profile) -> bool:
    """Whether tokens have a share in the time of the largest step: a fit that puts all elsewhere tells nothing."""
    speed = profile.speed.model
    by_tokens = speed.token_seconds * profile.largest
    return by_tokens >= _TOKEN_SHARE * (speed.step_seconds + by_tokens + speed.adapter_seconds)


def idle_memory(place: Place, base: BaseDescription, idle_bytes: int) -> MemoryModel:
    """The guess of an actor's memory, corrected by what its loaded base model was measured to take."""
    guess = prior_memory(base, place.shape)
    beyond = guess.fixed_bytes - base_bytes(base, place.shape.dtype_bytes, place.shape.quantization)
    beyond -= RESERVE_BYTES[device_kind(place.device)]
    return MemoryModel(idle_bytes + max(0.0, beyond), guess.bytes_per_token, guess.token_cap)
