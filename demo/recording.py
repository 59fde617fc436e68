"""A recording of a terminal as one SVG file that plays by itself: rich draws each line once, CSS says when it shows."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.segment import Segment
from rich.terminal_theme import DIMMED_MONOKAI

from demo.screen import COLUMNS, Frame

_FASTER = 10.0  # than it was
_LAST_SECONDS = 8.0  # for which the last picture stays
_LINE, _CHARACTER, _FONT = 24.4, 12.2, 20.0  # as rich draws them
_MARGIN = 12.0
_ONE_LINE = "<style>{styles}</style>{backgrounds}<g class='{unique_id}-matrix'>{matrix}</g>"


def animate(frames: Sequence[Frame]) -> str:
    """The SVG of pictures that follow each other; without motion, the last one.

    Args:
        frames: All of one size.
    """
    begins = [seconds / _FASTER for seconds, _ in frames]
    begins = [begin - begins[0] for begin in begins]
    whole = begins[-1] + _LAST_SECONDS
    ends = [*begins[1:], whole]
    style, body = [], []
    height = len(frames[0][1])
    for row in range(height):
        for first, last, line in _runs([frame[row] for _, frame in frames]):
            if not "".join(part.text for part in line).strip():
                continue
            name = f"l{row}-{first}"
            shown = "visible" if last == len(frames) - 1 else "hidden"
            body.append(f'<g class="{name}" transform="translate(0 {row * _LINE:.1f})">{_draw(line, name)}</g>')
            style.append(f".{name} {{visibility: {shown}; animation: {name} {whole:.1f}s step-end infinite}}")
            begin, end = 100 * begins[first] / whole, 100 * ends[last] / whole
            hidden = "0% {visibility: hidden} " if begin > 0 else ""
            style.append(
                f"@keyframes {name} {{{hidden}{begin:.2f}% {{visibility: visible}} {end:.2f}% {{visibility: hidden}}}}"
            )
    style.append("@media (prefers-reduced-motion: reduce) {g {animation: none !important}}")
    return _PAGE.format(
        width=COLUMNS * _CHARACTER + 2 * _MARGIN,
        height=height * _LINE + 2 * _MARGIN,
        margin=_MARGIN,
        background=DIMMED_MONOKAI.background_color.hex,
        font=_FONT,
        style="\n".join(style),
        body="\n".join(body),
    )


_PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">
<title>A terminal in which make demo runs</title>
<style>
text {{font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {font}px; white-space: pre}}
{style}
</style>
<rect width="100%" height="100%" rx="8" fill="{background}"/>
<g transform="translate({margin} {margin})">
{body}
</g>
</svg>
"""


def _runs(lines: Sequence[list[Segment]]) -> list[tuple[int, int, list[Segment]]]:
    """What one row shows: the first and the last picture of each content."""
    runs: list[tuple[int, int, list[Segment]]] = []
    for number, line in enumerate(lines):
        if runs and runs[-1][2] == line:
            runs[-1] = (runs[-1][0], number, line)
        else:
            runs.append((number, number, line))
    return runs


def _draw(line: list[Segment], name: str) -> str:
    paper = Console(width=COLUMNS, file=StringIO(), record=True, force_terminal=True, color_system="truecolor")
    for part in line:
        paper.print(part.text, style=part.style or "", end="", markup=False, highlight=False, soft_wrap=True)
    return paper.export_svg(theme=DIMMED_MONOKAI, code_format=_ONE_LINE, unique_id=name)
