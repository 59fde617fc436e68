"""How much of a job's metrics a tracker has: a small file in the job's output folder, so that no row goes twice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_actor.paths import file_names
from gpu_actor.storage.small_file import write_whole
from orchestrator.jobs.report_to import TrackerName
from orchestrator.tracking.metric_rows import Place


@dataclass(frozen=True)
class Sent:
    """What a tracker has of one job.

    Attributes:
        run: By what it knows the run again.
        step: Of the latest row that it was given.
        evaluation: Whether that was an evaluation, as in `metric_rows.Place`.
        over: Whether it was told the end.
    """

    run: str
    step: int = 0
    evaluation: int = 0
    over: bool = False

    @property
    def place(self) -> Place:
        """Of the latest row."""
        return self.step, self.evaluation

    @classmethod
    def read(cls, folder: Path, tracker: TrackerName) -> Sent | None:
        """What the file says; None where there is none, as before the first row and after a start from scratch."""
        try:
            fields = json.loads((folder / file_names.tracked(tracker)).read_text("utf-8"))
            return cls(str(fields["run"]), int(fields["step"]), int(fields["evaluation"]), bool(fields["over"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path, tracker: TrackerName) -> None:
        """Put it into the file, whole.

        Raises:
            OSError: It cannot be written.
        """
        write_whole(folder / file_names.tracked(tracker), json.dumps(asdict(self)))
