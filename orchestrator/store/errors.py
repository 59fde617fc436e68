"""What can be wrong with the job table, or with what it is to hold. Apart from it, so that SQLAlchemy stays out."""

from __future__ import annotations

from gpu_actor.contract.errors import InvalidJobError, LorayError


class StoreError(LorayError, RuntimeError):
    """The job table cannot be used."""


class StoreUnavailableError(StoreError):
    """The job table cannot be reached, or written, for the time being."""


class LiveJobError(InvalidJobError):
    """A live job has that name or that output folder.

    Attributes:
        job: Name of the refused job.
        field: `name` or `output_dir`.
        message: The reason in words, without the job's name.
    """

    def __init__(self, job: str, field: str, message: str) -> None:
        super().__init__(job, field, message)
        self.job, self.field, self.message = job, field, message

    def __str__(self) -> str:
        return f"job {self.job}: {self.field}: {self.message}"
