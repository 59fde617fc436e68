"""What a job is: its fields, and which of them go together."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gpu_actor.contract.config import AdapterSpec, DatasetConfig, EarlyStopConfig, TrainingConfig
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.strict import Strict
from gpu_actor.paths.locations import is_hub_id, looks_like_path
from orchestrator.jobs.report_to import TrackerName
from orchestrator.validation.problems import ProblemsError
from orchestrator.validation.yaml_file import write_document

MAX_NAME = 128
ACCEPTED = "accepted"
"""As the context of a validation: a job that an earlier Loray accepted, perhaps before a rule was made."""


class QueueConfig(Strict):
    """How a job stands in the queue."""

    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Higher goes first: under fifo policies ten minutes ahead for each step, under srpt and cosrpt "
        "with twice the weight for each step, up to 10.",
    )
    max_retries: int = Field(
        default=2,
        ge=0,
        le=100,
        description="Fresh starts from the last checkpoint after the process of the actor has died; from the second "
        "on, and on the last, the job is tried alone. What dies with its node or its device does not count.",
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
        description="The folder of the finished adapter, new or empty; relative paths start at the job file. Also "
        "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.",
    )

    report_to: list[TrackerName] | None = Field(
        default=None,
        description="Experiment trackers that the metrics also go to; [] for none, null: those of the cluster file.",
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
    def _rules_can_act(self, info: ValidationInfo) -> JobSpec:
        wrong = None if info.context == ACCEPTED else _blind_rule(self)
        if wrong:
            raise ValueError(wrong)
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


def _blind_rule(spec: JobSpec) -> str | None:
    """Which rule about losses could never act, in words: it sees nothing, or another one would have to use it."""
    rules, training = spec.early_stop, spec.training
    every, last = training.eval_steps, training.max_steps
    holds_out = any(source.val_size for source in spec.dataset.sources)
    if every is not None and not holds_out:
        return (
            f"training.eval_steps ({every}) does nothing without samples to evaluate on; set dataset.val_size, such as "
            "0.05, or leave eval_steps out"
        )
    if rules.patience is not None and every is not None and last is not None and every > last:
        return (
            f"early_stop.patience needs evaluations, and training.eval_steps ({every}) exceeds training.max_steps "
            f"({last}); lower eval_steps, or leave patience out"
        )
    if rules.patience is not None and not holds_out:
        return "early_stop.patience needs evaluations; set dataset.val_size, such as 0.05, or leave patience out"
    if rules.min_delta and rules.patience is None:
        return f"early_stop.min_delta {rules.min_delta:g} does nothing without early_stop.patience; give both or none"
    if rules.halving_steps is None:
        given = {"halving_keep": rules.halving_keep != EarlyStopConfig().halving_keep, "group": rules.group is not None}
        lone = next((name for name, is_given in given.items() if is_given), None)
        return f"early_stop.{lone} does nothing without early_stop.halving_steps; give both or none" if lone else None
    if rules.group is None:
        return (
            "early_stop.halving_steps compares the jobs of a grid, and this job is in none; give it a grid, or give "
            "jobs that are submitted together the same early_stop.group"
        )
    evaluated = holds_out and training.eval_steps is not None and training.eval_steps <= rules.halving_steps
    if training.logging_steps > rules.halving_steps and not evaluated:
        return (
            f"early_stop.halving_steps {rules.halving_steps} comes before the first loss is known; set "
            f"training.logging_steps (now {training.logging_steps}), or training.eval_steps with dataset.val_size, to "
            f"at most {rules.halving_steps}"
        )
    return None


class JobFileError(ProblemsError, InvalidJobError):
    """Job files that cannot be used; its text has one line for each problem of each file."""
