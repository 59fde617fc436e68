"""The cluster file: where state lives, which actors there are, and how the scheduler works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gpu_actor.contract.config import Quantization, check_quantization
from gpu_actor.contract.strict import Strict
from gpu_actor.paths.locations import loray_home
from gpu_actor.paths.roots import default_roots
from gpu_actor.paths.urls import is_url, url_problem, without_file_scheme
from orchestrator.jobs.owner import OPERATOR
from orchestrator.jobs.report_to import TrackerName
from orchestrator.scheduler.policy import DEFAULT, POLICIES
from orchestrator.validation.problems import ProblemsError

_UNITS = {"": 1, "B": 1} | {
    unit: base**power
    for base, infix in ((1000, ""), (1024, "i"))
    for power, unit in enumerate((f"{prefix}{infix}B" for prefix in "kMGT"), start=1)
}
_UNITS |= {"KB": 1000, "KiB": 1024}


def parse_size(value: Any) -> Any:
    """Bytes from a size with its unit, such as `8GiB` or `500MB`; anything but text is returned as it is.

    Raises:
        ValueError: The text is no size.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", value)
    size = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if size < 1:
        raise ValueError("is not a size; allowed: bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB")
    return size


Size = Annotated[int, BeforeValidator(parse_size)]


class ActorConfig(Strict):
    """One actor: one base model on one device."""

    base_model: str | None = Field(
        default=None,
        min_length=1,
        description="The only base model it hosts; null: whichever the waiting jobs call for.",
    )
    num_gpus: float = Field(default=0, ge=0, le=1, description="Share of a GPU that Ray sets aside for it; 0: CPU.")
    device: str | None = Field(
        default=None,
        pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$",
        description="`cpu` or `cuda`; null: `cuda` when num_gpus is above 0, else `cpu`.",
    )
    node_labels: str | None = Field(
        default=None,
        max_length=1000,
        pattern=r"^[A-Za-z0-9_./-]+=[A-Za-z0-9_.-]+(,[A-Za-z0-9_./-]+=[A-Za-z0-9_.-]+)*$",
        description="Labels that its node must have, `key=value,key=value` as `ray start --labels` takes them; null: a "
        "CPU actor is on the head node, and for a GPU Ray chooses.",
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        default="float32", description="Number format of the base model."
    )
    quantization: Quantization | None = Field(
        default=None,
        description="Number format of the base model's linear layers: `nf4` (with double quantisation) or `int8`, by "
        "bitsandbytes; products are made in dtype. null: dtype.",
    )
    memory_limit: Size | None = Field(
        default=None,
        gt=0,
        description="Bytes it may use, or a size such as 8GiB; null: all that the device has.",
    )
    token_budget: int | None = Field(
        default=None,
        gt=0,
        description="Most tokens in one shared batch; null: 512 on a CPU, on a GPU what it has room for.",
    )
    cpu_threads: int | None = Field(default=None, ge=1, description="Threads of a CPU actor; null: one per core.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for activations, slower steps.")

    @model_validator(mode="after")
    def _device_fits(self) -> ActorConfig:
        if self.device and (self.device != "cpu") != (self.num_gpus > 0):
            raise ValueError(
                f"device {self.device} does not go with num_gpus {self.num_gpus:g}; "
                "a cuda device needs num_gpus above 0, and cpu needs 0"
            )
        if self.device and self.device not in ("cpu", "cuda", "cuda:0"):
            raise ValueError(
                f"device {self.device} is never there: Ray gives an actor its GPU and shows it no other, so that it is "
                "cuda:0 to it; give cuda, and choose GPUs by CUDA_VISIBLE_DEVICES when Ray is started"
            )
        if self.cpu_threads is not None and self.num_gpus:
            raise ValueError(
                f"cpu_threads {self.cpu_threads} does nothing for an actor with num_gpus {self.num_gpus:g}; "
                "leave it out, or give num_gpus 0 for a CPU actor"
            )
        check_quantization(self.quantization, self.dtype)
        return self

    @property
    def label_selector(self) -> dict[str, str]:
        """The labels that its node must have."""
        return dict(label.split("=", 1) for label in self.node_labels.split(",")) if self.node_labels else {}

    @property
    def resolved_device(self) -> str:
        """The device, chosen by num_gpus where none is given."""
        return self.device or ("cuda" if self.num_gpus else "cpu")


class SchedulerConfig(Strict):
    """How jobs are placed."""

    policy: str = Field(
        default=DEFAULT,
        description="Who trains where. `cosrpt`: shortest remaining work first, shared steps where they pay; `srpt`: "
        "the same, one job per actor; `fifo`, `fifo-4`, `fifo-memory`: by arrival, 1, 4 or as many per actor as fit.",
    )
    makespan: float = Field(
        default=0.0,
        ge=0,
        le=4,
        description="Under `cosrpt`: 0 for the shortest mean turnaround; with more, the jobs that would be the last to "
        "end begin sooner. 1.5 makes the whole queue end as soon as under `fifo-4`, for a few per cent of the mean.",
    )
    tick_seconds: float = Field(default=0.5, gt=0, le=60, description="Seconds between two looks at the cluster.")

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str) -> str:
        if value not in POLICIES:
            raise ValueError(f"is not allowed; allowed: {', '.join(POLICIES)}")
        return value


class HttpConfig(Strict):
    """The HTTP door of the orchestrator."""

    port: int | None = Field(
        default=None, ge=0, le=65535, description="Where it listens; 0: any free port; null: there is no door."
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="The interface it listens on. Tokens travel in the clear: others reach it through ssh, or through "
        "a proxy with TLS.",
    )
    max_open_answers: int = Field(
        default=32, ge=1, le=10_000, description="Requests to models that are answered at a time; more are refused."
    )
    allowed_roots: list[str] = Field(
        default_factory=list,
        description="Folders below which jobs of others than the operator may lie too, beside what they have sent and "
        "their own results.",
    )
    max_upload: Size = Field(
        default=2 * 2**30,
        gt=0,
        description="Bytes of one file that a job from elsewhere reads, or a size such as 2GiB.",
    )


QUOTA_DAYS = 30  # of which device hours count


class QuotaConfig(Strict):
    """How much of the cluster one owner's jobs may take."""

    queued: int | None = Field(default=None, ge=0, description="Most jobs that wait or are paused; null: any number.")
    running: int | None = Field(
        default=None, ge=1, description="Most jobs that train at a time, the others wait; null: any number."
    )
    device_hours: float | None = Field(
        default=None,
        gt=0,
        description=f"Hours of GPUs, or of CPU actors, in the latest {QUOTA_DAYS} days, after which further jobs wait; "
        "one that several jobs share counts for each by its part. null: any number.",
    )
    share: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Fair share: where anybody has one, the weights of each owner's jobs together are as the shares "
        "are, so that many jobs of one hold up nobody else's few. null: 1.",
    )


EndEvent = Literal["job", "grid", "queue"]


class OnEndConfig(Strict):
    """Who is told of an end."""

    when: list[EndEvent] = Field(
        default=["job"],
        min_length=1,
        description="`job`: a job is over; `grid`: all jobs of one submission are, if it had several; `queue`: nothing "
        "runs or waits any more.",
    )
    command: list[str] | None = Field(
        default=None,
        min_length=1,
        description="A program and its arguments, started without a shell; it reads the facts as JSON.",
    )
    url: str | None = Field(
        default=None, pattern=r"^https?://[^/\s]+\S*$", description="A webhook; the facts are sent as JSON by POST."
    )
    timeout_seconds: float = Field(default=10.0, gt=0, le=300, description="After which it is given up.")

    @model_validator(mode="after")
    def _one_of_both(self) -> OnEndConfig:
        if (self.command is None) == (self.url is None):
            raise ValueError("takes either command or url, and needs one of them")
        return self


class ClusterConfig(Strict):
    """The whole cluster file; every field has a default."""

    storage: str = Field(
        default_factory=lambda: str(loray_home()),
        min_length=1,
        description="Where Loray keeps what is its own; the default is $LORAY_HOME, else ~/.loray. A folder; or "
        "s3://BUCKET/FOLDER for the results of jobs that name no place here, and then the job table, its locks, tokens "
        "and what is sent are in the default folder.",
    )
    database: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the job table, sqlite or postgresql; null: SQLite in storage.",
    )
    actors: Literal["auto"] | list[ActorConfig] = Field(
        default="auto",
        description="`auto` (one actor per GPU, one CPU actor where there is none), or a list of actors.",
    )
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig, description="How jobs are placed.")
    report_to: list[TrackerName] = Field(
        default_factory=list,
        description="Experiment trackers that get the metrics of jobs which name none themselves.",
    )
    on_end: list[OnEndConfig] = Field(
        default_factory=list, description="Commands and webhooks that are told when a job, a grid or the queue ends."
    )
    http: HttpConfig = Field(default_factory=HttpConfig, description="The HTTP door, as of `loray serve --http PORT`.")
    quotas: dict[str, QuotaConfig] = Field(
        default_factory=dict,
        description="By owner; `default` is that of everybody who is not named, but for the operator.",
    )
    allowed_roots: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Folders below which data sets, outputs, start adapters and base model folders must lie, hidden "
        "names and folders of the system excepted; s3://BUCKET/FOLDER allows outputs there. null: the folder where "
        "Loray is started, your home, the storage.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether Python code that comes with a base model may run on the actors."
    )
    allow_pickle: bool = Field(
        default=False,
        description="Whether base models whose weights are pickles (.bin) are read; a pickle can try to run code.",
    )

    @field_validator("storage")
    @classmethod
    def _reachable(cls, value: str) -> str:
        place = without_file_scheme(value)
        if is_url(place) and (problem := url_problem(place)):
            raise ValueError(problem)
        return value

    @field_validator("allowed_roots")
    @classmethod
    def _usable(cls, value: list[str] | None) -> list[str] | None:
        for url in (root.rstrip("/") for root in value or () if is_url(without_file_scheme(root))):
            if problem := url_problem(f"{url}/any"):
                raise ValueError(problem.replace("/any", ""))
        return value

    @field_validator("database")
    @classmethod
    def _database(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"(sqlite|postgresql)(\+\w+)?://.*/.", value):
            raise ValueError("is not a URL of a database; allowed: sqlite:////folder/file.db, postgresql://host/name")
        return value

    @field_validator("actors")
    @classmethod
    def _some_actor(cls, value: str | list[ActorConfig]) -> str | list[ActorConfig]:
        if not value:
            raise ValueError("names no actor; give at least one, or auto")
        return value

    def quota_of(self, owner: str) -> QuotaConfig:
        """How much an owner's jobs may take."""
        rest = QuotaConfig() if owner == OPERATOR else self.quotas.get("default", QuotaConfig())
        return self.quotas.get(owner, rest)

    @property
    def roots(self) -> list[str]:
        """The allowed folders; by default those of the process that asks."""
        if self.allowed_roots is not None:
            return self.allowed_roots
        return default_roots(self.storage, str(self.state_folder))

    @property
    def written_roots(self) -> list[str]:
        """The folders below which any job may write: the allowed ones, and what the storage keeps for jobs that were
        sent or came out of one of Ray's packages."""
        return [*self.roots, self.outputs]

    @property
    def state_folder(self) -> Path:
        """The folder of what no bucket can keep: the job table, locks, tokens, and what jobs from elsewhere read."""
        return loray_home() if is_url(self.storage) else Path(self.storage)

    @property
    def outputs(self) -> str:
        """Where results go of jobs that were sent or came out of one of Ray's packages: a folder, or a URL."""
        return f"{self.storage.rstrip('/')}/outputs"

    @property
    def database_url(self) -> str:
        """The URL of the job table."""
        return self.database or f"sqlite:///{self.state_folder / 'loray.db'}"


class ClusterFileError(ProblemsError):
    """A cluster file that cannot be used; its text has one line for each problem."""
