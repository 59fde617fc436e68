"""The picture of who trained where when in a real run, from its timeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.simulation.gantt import Segment, render


def draw(
    timeline: Mapping[str, Any], names: Mapping[str, str], title: str, paints: Mapping[str, str] | None = None
) -> str:
    """A timeline as a picture, in SVG text.

    Args:
        timeline: What `Client.timeline` returned.
        names: Of the jobs, by id.
        title: Above the picture.
        paints: Colours of the jobs, by name, where they have one already.
    """
    segments = [
        Segment(names[stay["job_id"]], stay["place"], stay["since"], stay["until"] or timeline["now"])
        for stay in timeline["stays"]
    ]
    start = min((segment.start for segment in segments), default=0.0)
    end = max((segment.end for segment in segments), default=0.0)
    lanes = sorted({segment.lane for segment in segments})
    memory = {lane: _between(timeline["memory"].get(lane, ()), start, end) for lane in lanes}
    return render(lanes, segments, memory if any(memory.values()) else None, title, paints)


def _between(points: Iterable[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """The points of the time that is drawn, from what was in use at its start."""
    points = list(points)
    before = [share for moment, share in points if moment <= start]
    inside = [(moment, share) for moment, share in points if start < moment <= end]
    return [*([(start, before[-1])] if before else []), *inside]
