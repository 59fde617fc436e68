"""The tables that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from .rows import Row, remarks


def print_rows(rows: Sequence[Row], result: Mapping[str, Any], console: Console) -> None:
    """Speed, memory and loss of every peer by the number of jobs, and below it what the rows have to say."""
    load = f"load {result['load_before']:.1f} before, {result['load_after']:.1f} after"
    table = Table(title=f"{result['base_model']}, fp32, {result['threads']} threads; {load}")
    for heading in (
        "lengths",
        "peer",
        "jobs",
        "tokens/s",
        "Loray's",
        "Loray / peer",
        "per processor s",
        "MiB",
        "Loray's",
        "loss apart",
    ):
        table.add_column(heading, justify="left" if heading in ("lengths", "peer") else "right")
    notes: dict[str, int] = {}
    for row in rows:
        marks = [str(notes.setdefault(why, len(notes) + 1)) for why in remarks(row)]
        if row.failure is not None:
            ours = f"{median(row.ours):.0f}", f"{row.our_peak / 2**20:.0f}"
            table.add_row(
                row.lengths, row.peer, str(row.jobs), "-", ours[0], "-", "-", "-", ours[1], f"-  [{', '.join(marks)}]"
            )
            continue
        speed = f"{row.speed:.2f}" + (
            f" ({min(row.ratios):.2f} .. {max(row.ratios):.2f})" if len(row.ratios) > 1 else ""
        )
        table.add_row(
            row.lengths,
            row.peer,
            str(row.jobs),
            f"{row.tokens_per_second:.0f}",
            f"{row.speed * row.tokens_per_second:.0f}",
            speed,
            f"{median(row.processor):.2f}",
            f"{row.their_peak / 2**20:.0f}",
            f"{row.our_peak / 2**20:.0f}",
            f"{row.loss:.0e}" + (f"  [{', '.join(marks)}]" if marks else ""),
        )
    console.print(table, markup=False)
    for why, number in notes.items():
        console.print(f"[{number}] {why}", markup=False)


def print_memory(rows: Sequence[Row], at_once: Mapping[str, int], processes: int, console: Console) -> None:
    """Processes side by side against Loray's one."""
    for name, peak in at_once.items():
        ours = next(row.our_peak for row in rows if row.jobs == processes)
        console.print(
            f"Peak memory of {processes} jobs: {name} in {processes} processes at once {peak / 2**20:.0f} MiB, "
            f"Loray {ours / 2**20:.0f} MiB ({ours / peak:.2f})"
        )
