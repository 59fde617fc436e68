"""TensorBoard, by tensorboardX, which brings neither torch nor the viewer with it."""

from __future__ import annotations

import json
import secrets
import time as clock
from collections.abc import Sequence

# Not SummaryWriter: its flush() leaves rows in a queue, which are lost if the process dies.
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from orchestrator.jobs.states import JobState
from orchestrator.tracking.tracker import Point, Run, RunIdentity


def open_run(identity: RunIdentity) -> Run:
    """Write event files into `<output_dir>/tensorboard`, one more each time that the run is opened."""
    return _TensorBoardRun(identity)


class _TensorBoardRun:
    most_at_once = 1

    def __init__(self, identity: RunIdentity) -> None:
        started_over = identity.id.partition("-")[2]
        folder = identity.folder / ("tensorboard" + (f"-{started_over}" if started_over else ""))
        first = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        # a name of its own: the later of two files of one second would overwrite the other
        self._writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
        if first:
            lines = json.dumps(identity.settings, indent=2).splitlines()
            self._text("job", "".join(f"    {line}\n" for line in lines), 0)  # indented: code in Markdown

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._writer.write_event(Event(wall_time=point.time, step=point.step, summary=Summary(value=scalars)))

    def _text(self, tag: str, text: str, step: int) -> None:
        self._writer.write_event(Event(wall_time=clock.time(), step=step, summary=summary.text(tag, text)))

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, state: JobState, reason: str | None, step: int) -> None:
        self._text("state", f"{state.value}: {reason}" if reason else state.value, step)
        self._writer.close()

    def close(self) -> None:
        self._writer.close()
