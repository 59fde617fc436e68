"""What a job is: its fields, its states and the legal ways between them."""

from __future__ import annotations

from enum import Enum

from pydantic import Field, field_validator, model_validator

from gpu_actor.config import AdapterSpec, DatasetConfig, EarlyStopConfig, TrainingConfig
from gpu_actor.errors import IllegalTransitionError, InvalidJobError
from gpu_actor.lora_config import LoraConfig
from gpu_actor.model_store import is_hub_id, looks_like_path
from gpu_actor.strict import Strict
from orchestrator.field_errors import Problem, ProblemsError
from orchestrator.yaml_file import write_document

__all__ = ["TERMINAL", "JobFileError", "JobSpec", "JobState", "Problem", "QueueConfig", "check_transition"]

MAX_NAME = 128


class QueueConfig(Strict):
    """How a job stands in the queue."""

    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first.")
    max_retries: int = Field(
        default=2,
        ge=0,
        le=100,
        description="Fresh starts from the last checkpoint after a failure that may pass.",
    )


class JobSpec(Strict):
    """One job: one adapter to train. Paths read from a file are absolute."""

    name: str = Field(
        pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}$",
        description="A name, unique among live jobs: letters, digits, '.', '_' and '-', the first of them a "
        f"letter or a digit; at most {MAX_NAME} characters.",
    )
    base_model: str = Field(description="The base model: a hub id (organisation/name), a folder, or a .gguf file.")
    dataset: DatasetConfig = Field(description="What to train on.")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="The shape of the adapter.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How the adapter is trained.")
    early_stop: EarlyStopConfig = Field(
        default_factory=EarlyStopConfig, description="When the job may stop before its last step."
    )
    queue: QueueConfig = Field(default_factory=QueueConfig, description="How the job stands in the queue.")
    output_dir: str = Field(
        min_length=1,
        description="The folder of the finished adapter, new or empty; relative paths start at the job file.",
    )

    @field_validator("base_model")
    @classmethod
    def _reference(cls, value: str) -> str:
        if not looks_like_path(value) and not is_hub_id(value):
            raise ValueError(
                "is neither a folder that exists nor a hub id; allowed: a folder or .gguf file (relative paths start "
                "at the job file), or organisation/name of letters, digits, '.', '_' and '-'"
            )
        return value

    @model_validator(mode="after")
    def _early_stop_can_see(self) -> JobSpec:
        if self.early_stop.patience is not None and not self.dataset.val_size:
            raise ValueError(
                "early_stop.patience needs evaluations; set dataset.val_size, such as 0.05, or leave patience out"
            )
        every, last = self.training.eval_steps, self.training.max_steps
        if self.early_stop.patience is not None and every is not None and last is not None and every > last:
            raise ValueError(
                f"early_stop.patience needs evaluations, and training.eval_steps ({every}) exceeds "
                f"training.max_steps ({last}); lower eval_steps, or leave patience out"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_asked_for_in_vain(self) -> JobSpec:
        if self.training.eval_steps is not None and not self.dataset.val_size:
            raise ValueError(
                f"training.eval_steps ({self.training.eval_steps}) does nothing without samples to evaluate on; set "
                "dataset.val_size, such as 0.05, or leave eval_steps out"
            )
        if self.early_stop.halving_steps is not None and self.early_stop.group is None:
            raise ValueError(
                f"early_stop.halving_steps ({self.early_stop.halving_steps}) compares the jobs of a grid, and this job "
                "is in none; give it a grid, or the same early_stop.group to several jobs of a submission"
            )
        return self

    def to_adapter_spec(self, job_id: str) -> AdapterSpec:
        """What an actor needs to train this job.

        Args:
            job_id: The id that the orchestrator gave to the job.
        """
        return AdapterSpec(
            job_id=job_id,
            name=self.name,
            base_model=self.base_model,
            dataset=self.dataset,
            lora=self.lora,
            training=self.training,
            early_stop=self.early_stop,
            output_dir=self.output_dir,
        )

    def to_yaml(self) -> str:
        """The job file with every field written out; reading it again gives an equal job."""
        return write_document(self.model_dump(mode="json"))


class JobFileError(ProblemsError, InvalidJobError):
    """Job files that cannot be used; its text has one line for each problem of each file."""


class JobState(str, Enum):
    """Where a job is in its life."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""The states of a job that is over (FAILED and CANCELLED jobs come back by a retry only)."""

_NEXT: dict[JobState, tuple[JobState, ...]] = {
    JobState.QUEUED: (JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED),
    JobState.RUNNING: (
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.QUEUED,
        JobState.PAUSED,
    ),
    JobState.PAUSED: (JobState.QUEUED, JobState.CANCELLED),
    JobState.SUCCEEDED: (),
    JobState.FAILED: (JobState.QUEUED,),
    JobState.CANCELLED: (JobState.QUEUED,),
}


def check_transition(old: JobState, new: JobState) -> None:
    """Refuses a change of state that is not legal.

    Raises:
        IllegalTransitionError: The change is not legal; the message says which ones are.
    """
    if new in _NEXT[old]:
        return
    allowed = ", ".join(state.value for state in _NEXT[old])
    remedy = f"allowed from here: {allowed}" if allowed else "it is over for good; submit a new job"
    raise IllegalTransitionError(f"a job that is {old.value} cannot become {new.value}; {remedy}")
