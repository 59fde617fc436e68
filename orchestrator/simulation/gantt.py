"""A run as a picture: one self-contained SVG with a lane per actor, a bar per job and its memory as a line below.

Works on plain lists, so that a simulated and a real run are drawn alike.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 1400.0
_LEFT, _RIGHT, _TOP = 110.0, 24.0, 74.0
_ROW = 13.0  # of one job among those that share an actor
_LANE_LEAST = 30.0
_MEMORY = 26.0
_GAP = 10.0
_FEW_JOBS = 24  # up to this many have a colour each and stand in the legend
_LABEL_LEAST = 6.2  # width of a letter
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800)


@dataclass(frozen=True)
class Segment:
    """A job on a lane, from its attachment to its leaving, in seconds."""

    job: str
    lane: str
    start: float
    end: float


def render(
    lanes: Sequence[str],
    segments: Sequence[Segment],
    memory: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    title: str = "",
    paints: Mapping[str, str] | None = None,
) -> str:
    """The picture as SVG text.

    Args:
        lanes: Names of the actors, top to bottom.
        segments: Who was where when; the earliest start is the left end of the time axis.
        memory: Lane -> (time, share of the memory limit that is in use) at each change.
        title: Above it.
        paints: Colours of jobs that have one elsewhere already.
    """
    start = min((one.start for one in segments), default=0.0)
    end = max((one.end for one in segments), default=start + 1.0)
    scale = (_WIDTH - _LEFT - _RIGHT) / max(end - start, 1e-9)
    jobs = list(dict.fromkeys(one.job for one in sorted(segments, key=lambda one: one.start)))
    colours = {**_colours(jobs), **(paints or {})}
    body: list[str] = []
    top = _TOP
    for lane in lanes:
        on_lane = sorted((one for one in segments if one.lane == lane), key=lambda one: (one.start, one.job))
        rows = _rows(on_lane)
        count = max(rows, default=0) + 1
        height = max(_LANE_LEAST, count * _ROW) if count <= 4 else max(_LANE_LEAST, 4 * _ROW + (count - 4) * _ROW / 2)
        body.append(_lane(lane, top, height))
        body += _bars(on_lane, rows, count, top, height, start, scale, colours)
        top += height + 2
        points = (memory or {}).get(lane, ())
        if memory is not None:
            body += _memory(points, top, start, end, scale)
            top += _MEMORY
        top += _GAP
    bottom = top
    axis = _axis(start, end, scale, _TOP - 6, bottom)
    legend, height = _legend(jobs, colours, bottom + 34, memory is not None)
    return _document(axis + body + legend, height, title, len(jobs), end - start)


def _rows(segments: Sequence[Segment]) -> list[int]:
    """The row of each segment within its lane: the first that is free."""
    free: list[float] = []
    rows = []
    for one in segments:
        row = next((number for number, until in enumerate(free) if until <= one.start + 1e-9), len(free))
        if row == len(free):
            free.append(0.0)
        free[row] = one.end
        rows.append(row)
    return rows


def _lane(lane: str, top: float, height: float) -> str:
    name = lane if len(lane) <= 15 else f"{lane[:7]}…{lane[-7:]}"
    return (
        f'<rect class="lane" x="{_LEFT}" y="{top:.1f}" width="{_WIDTH - _LEFT - _RIGHT}" height="{height:.1f}"/>'
        f'<text class="name" x="{_LEFT - 8}" y="{top + height / 2 + 4:.1f}"><title>{escape(lane)}</title>'
        f"{escape(name)}</text>"
    )


def _bars(
    segments: Sequence[Segment],
    rows: Sequence[int],
    count: int,
    top: float,
    height: float,
    start: float,
    scale: float,
    colours: Mapping[str, str],
) -> list[str]:
    each = height / count
    parts = []
    for one, row in zip(segments, rows, strict=True):
        x, width = _LEFT + (one.start - start) * scale, max((one.end - one.start) * scale, 0.4)
        y, tall = top + row * each, max(each - 1.0, 1.0)
        tip = f"{escape(one.job)}: {_clock(one.start - start)} to {_clock(one.end - start)}"
        parts.append(
            f'<rect class="job" x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{tall:.1f}" '
            f'fill="{colours[one.job]}"><title>{tip}</title></rect>'
        )
        if tall >= 9 and width > len(one.job) * _LABEL_LEAST + 6:
            parts.append(f'<text class="job" x="{x + 3:.1f}" y="{y + tall / 2 + 3.5:.1f}">{escape(one.job)}</text>')
    return parts


def _memory(points: Sequence[tuple[float, float]], top: float, start: float, end: float, scale: float) -> list[str]:
    """Memory in use as a stepped line; the upper edge is the limit."""
    height, low = _MEMORY - 4, top + _MEMORY - 4
    line, last = [], 0.0
    for moment, share in _thinned([*points, (end, points[-1][1] if points else 0.0)], 1.0 / scale):
        x = _LEFT + (min(max(moment, start), end) - start) * scale
        line += [f"{x:.1f},{low - last * height:.1f}", f"{x:.1f},{low - min(share, 1.15) * height:.1f}"]
        last = min(share, 1.15)
    right = _WIDTH - _RIGHT
    return [
        f'<line class="limit" x1="{_LEFT}" x2="{right}" y1="{low - height:.1f}" y2="{low - height:.1f}"/>',
        f'<polygon class="memory" points="{_LEFT},{low:.1f} {" ".join(line)} {right},{low:.1f}"/>',
        f'<polyline class="memory" points="{" ".join(line)}"/>',
        f'<text class="small" x="{_LEFT - 8}" y="{low - 3:.1f}">memory</text>',
    ]


def _thinned(points: Sequence[tuple[float, float]], width: float) -> list[tuple[float, float]]:
    """Of the points that fall on one pixel, the highest and the last: a peak never disappears."""
    kept: list[tuple[float, float]] = []
    cell: list[tuple[float, float]] = []
    for point in points:
        if cell and point[0] - cell[0][0] > width:
            kept += {max(cell, key=lambda one: one[1]), cell[-1]} if len(cell) > 1 else cell
            cell = []
        cell.append(point)
    return sorted([*kept, *cell], key=lambda one: one[0])


def _axis(start: float, end: float, scale: float, top: float, bottom: float) -> list[str]:
    span = end - start
    step: float = next((tick for tick in _TICKS if span / tick <= 10), 604800 * max(1, round(span / 6048000)))
    if span <= 2:
        step = span / 4 or 1.0
    parts, moment = [], 0.0
    while moment <= span * 1.0001:
        x = _LEFT + moment * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{top - 4:.1f}">{_clock(moment)}</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 13:.1f}">{_clock(moment)}</text>')
        moment += step
    return parts


def _legend(jobs: Sequence[str], colours: Mapping[str, str], top: float, memory: bool) -> tuple[list[str], float]:
    """What the colours mean; returns the parts and the height of the picture."""
    parts, x, y = [], _LEFT, top
    named = jobs if len(jobs) <= _FEW_JOBS else ()
    entries = [(colours[job], job) for job in named]
    if not named:
        entries.append(("#7aa6d8", f"a bar is one of {len(jobs)} jobs on an actor (point at it for its name)"))
    if memory:
        entries.append(("#c0504d", "memory in use; the dashed line is the actor's limit"))
    for colour, label in entries:
        width = 22 + len(label) * 6.4 + 14
        if x + width > _WIDTH - _RIGHT and x > _LEFT:
            x, y = _LEFT, y + 18
        parts.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="14" height="10" rx="2" fill="{colour}"/>')
        parts.append(f'<text class="legend" x="{x + 19:.1f}" y="{y:.1f}">{escape(label)}</text>')
        x += width
    return parts, y + 18


def _colours(jobs: Sequence[str]) -> dict[str, str]:
    """Few jobs: hues far apart. Many: a hue by the name, so that a job keeps its colour from picture to picture."""
    colours = {}
    for number, job in enumerate(jobs):
        few = len(jobs) <= _FEW_JOBS
        hue = number * 0.381966 % 1.0 if few else (zlib.crc32(job.encode()) % 997) / 997
        light = 0.62 + 0.12 * (number % 2) if few else 0.58 + 0.02 * (zlib.crc32(job.encode()) % 11)
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.55))
        colours[job] = f"#{red:02x}{green:02x}{blue:02x}"
    return colours


def _clock(seconds: float) -> str:
    """`45s`, `12m`, `1h30`, `2d 6h`."""
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds >= 8 or seconds == int(seconds) else f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h" if hours else f"{days}d"


def _document(parts: Sequence[str], height: float, title: str, jobs: int, span: float) -> str:
    style = (
        "text{font:11px system-ui,sans-serif;fill:#333}.name{text-anchor:end;font-weight:600}"
        ".small{text-anchor:end;font-size:9px;fill:#999}.tick{text-anchor:middle;fill:#777;font-size:10px}"
        ".title{font-size:16px;font-weight:600}.sub{fill:#777}.lane{fill:#f4f5f7}"
        ".job{stroke:#fff;stroke-width:.3}text.job{stroke:none;font-size:9.5px;fill:#222;pointer-events:none}"
        ".grid{stroke:#dde1e6;stroke-width:.7}.limit{stroke:#c0504d;stroke-width:.7;stroke-dasharray:3 3;opacity:.6}"
        "polyline.memory{fill:none;stroke:#c0504d;stroke-width:1}polygon.memory{fill:#c0504d;opacity:.12}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" width="{_WIDTH:.0f}" '
        f'height="{height:.0f}"><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="title" x="16" y="26">{escape(title or "Who trained where")}</text>'
        f'<text class="sub" x="16" y="44">{jobs} jobs, {_clock(span)} from the first start to the last end</text>'
        f"{''.join(parts)}</svg>\n"
    )
