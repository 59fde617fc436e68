"""How jobs and actors look on a terminal: lines and tables. It asks nobody for anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.formatting import (
    NONE,
    View,
    amount,
    base,
    by_liveliness,
    clock,
    duration,
    loss,
    plural,
    remark,
    seconds_run,
    share,
    size,
    steps,
)

STYLES = {
    "QUEUED": "yellow",
    "RUNNING": "cyan",
    "PAUSED": "magenta",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "red",
    "empty": "dim",
    "starting": "yellow",
    "loading": "yellow",
    "ready": "green",
    "failed": "red",
    "lost": "red",
}
PIPE_WIDTH = 240


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console of the terminal's width; wide when the output goes to a file or a pipe, so that nothing is cut.

    Args:
        stderr: Write to standard error instead of standard output.
        quiet: Write nothing.
    """
    stream = sys.stderr if stderr else sys.stdout
    wide = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, quiet=quiet, highlight=False, width=PIPE_WIDTH if wide else None)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=STYLES.get(state, ""))


def actor_line(actor: View) -> Text:
    """One line about one actor: memory and speed."""
    text = Text.assemble(str(actor["name"]), " ", state_text(actor["state"]), overflow="ellipsis", no_wrap=True)
    if actor["state"] == "ready":
        text.append(f"  {amount(actor['tokens_per_s'])} tokens/s in all")
    if actor["memory_used"]:
        limit = f" of {size(actor['memory_limit'])}" if actor["memory_limit"] else ""
        text.append(f"  memory {size(actor['memory_used'])}{limit} (peak {size(actor['memory_peak'])})")
    if actor["jobs"]:
        text.append(f"  {plural(len(actor['jobs']), 'job')}")
    if actor["reason"]:
        text.append(f"  {actor['reason']}", style="red" if actor["state"] in ("failed", "lost") else "")
    return text


def progress_table(views: Sequence[View], actors: Sequence[View], height: int) -> Group:
    """The live picture: one row for each job with a bar, and one line for each actor.

    Args:
        views: The jobs.
        actors: The actors.
        height: Lines that the terminal has; jobs beyond it are only counted.
    """
    room = max(3, height - len(actors) - 4)
    shown = by_liveliness(views)[:room]
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("job", no_wrap=True, overflow="ellipsis", max_width=32)
    table.add_column("state", no_wrap=True)
    table.add_column("", ratio=1, min_width=8, max_width=30)
    for title in ("step", "loss", "tok/s", "ETA"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=2)
    for view in shown:
        running = view["state"] == "RUNNING"
        table.add_row(
            Text(view["name"]),
            state_text(view["state"]),
            ProgressBar(total=1.0, completed=share(view)),
            steps(view),
            loss(view["loss"]),
            amount(view["tokens_per_s"]) if running else "",
            duration(view["eta_s"]) if running else "",
            Text(remark(view), style="dim"),
        )
    parts: list[RenderableType] = [table]
    if len(shown) < len(views):
        parts.append(Text(f"... and {plural(len(views) - len(shown), 'more job')}", style="dim"))
    parts += [actor_line(actor) for actor in actors]
    return Group(*parts)


def result_table(views: Sequence[View]) -> Table:
    """The end of a run: how each job ended, and where its adapter is or why there is none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job", no_wrap=True, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    for title in ("loss", "steps", "tokens", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("adapter, or the reason", overflow="fold")
    for view in views:
        done = view["state"] == "SUCCEEDED"
        table.add_row(
            Text(view["name"]),
            state_text(view["state"]),
            loss(view["loss"]),
            str(view["step"]) if done else steps(view),
            amount(view["tokens"]),
            duration(seconds_run(view)),
            Text(view["output_dir"] if done else remark(view) or NONE),
        )
    return table


def job_table(views: Sequence[View], width: int) -> Table:
    """The queue: one row for each job.

    Args:
        views: The jobs.
        width: Columns that the terminal has; a narrow one gets fewer facts, not cut ones.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    wide = width >= 120
    table.add_column("job", no_wrap=True, overflow="ellipsis")
    if wide:
        table.add_column("id", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if wide:
        table.add_column("base model", no_wrap=True, overflow="ellipsis", max_width=40)
    for title in ("prio", "step", "loss", "tok/s", "ETA") if wide else ("step", "loss", "ETA"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("remark", overflow="fold")
    for view in views:
        running = view["state"] == "RUNNING"
        eta = duration(view["eta_s"]) if running else NONE
        name, state = Text(view["name"]), state_text(view["state"])
        note = Text(remark(view))
        if wide:
            speed = amount(view["tokens_per_s"]) if running else NONE
            facts = (str(view["priority"]), steps(view), loss(view["loss"]), speed, eta)
            table.add_row(name, Text(view["id"]), state, Text(base(view)), *facts, note)
        else:
            table.add_row(name, state, steps(view), loss(view["loss"]), eta, note)
    return table


def actor_table(actors: Sequence[View]) -> Table:
    """The actors: one row for each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("actor", "state", "device"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for title in ("memory", "limit", "peak", "tok/s", "batch tokens", "adapters", "jobs"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("remark", overflow="fold")
    for actor in actors:
        table.add_row(
            Text(actor["name"]),
            state_text(actor["state"]),
            Text(actor["device"] or NONE),
            size(actor["memory_used"] or None),
            size(actor["memory_limit"] or None),
            size(actor["memory_peak"] or None),
            amount(actor["tokens_per_s"]),
            amount(actor["batch_tokens"]),
            str(actor["batch_adapters"]),
            str(len(actor["jobs"])),
            Text(actor["reason"] or ""),
        )
    return table


def job_details(view: View) -> Table:
    """Everything about one job, one fact a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    spec = view["spec"]
    lora, training = spec["lora"], spec["training"]
    targets = lora["target_modules"]
    samples = f"{view['samples']} ({view['truncated']} cut, {view['dropped']} dropped)"
    speed = f"{amount(view['tokens_per_s'])} tokens/s, ETA {duration(view['eta_s'])}"
    facts: list[tuple[str, str]] = [
        ("job", view["name"]),
        ("id", view["id"]),
        ("waits for", view["waiting_for"] or ""),
        ("not saved", view["unsaved"]),
        ("reason", view["reason"] or ""),
        ("base model", view["base_model"]),
        ("data", f"{spec['dataset']['path']} ({spec['dataset']['format']})"),
        ("output", view["output_dir"]),
        ("adapter", f"r {lora['r']}, alpha {lora['lora_alpha']:g}, dropout {lora['lora_dropout']:g}"),
        ("targets", targets if isinstance(targets, str) else ", ".join(targets)),
        (
            "training",
            f"learning rate {training['learning_rate']:g} ({training['lr_scheduler_type']}), "
            f"batch {training['per_device_train_batch_size']} x {training['gradient_accumulation_steps']}, "
            f"seed {training['seed']}",
        ),
        ("actor", view["actor"] or NONE),
        ("step", f"{steps(view)}, epoch {view['epoch']:.2f}"),
        ("loss", loss(view["loss"])),
        ("eval loss", loss(view["eval_loss"]) if view["eval_loss"] is not None else ""),
        ("speed", speed if view["state"] == "RUNNING" else ""),
        ("tokens", amount(view["tokens"])),
        ("samples", samples if view["samples"] else ""),
        (
            "shortened",
            f"{plural(view['shortened'], 'conversation')}, of which the chat template leaves out a part of an answer "
            "(thoughts of earlier turns, say); that part is not learned"
            if view["shortened"]
            else "",
        ),
        (
            "without gradient",
            f"{view['unreached']}: in the first step the loss did not depend on the adapter there. If it never does, "
            "it stays as it began: leave these names out of lora.target_modules"
            if view["unreached"]
            else "",
        ),
        ("columns not read", view["unread_columns"]),
        ("priority", str(view["priority"])),
        ("attempt", f"{view['attempt']}, retries {view['retries']}"),
        ("submitted", clock(view["submitted_at"])),
        ("started", clock(view["started_at"])),
        ("finished", clock(view["finished_at"])),
        ("time", duration(seconds_run(view))),
    ]
    table.add_row("state", state_text(view["state"]))
    for name, fact in facts:
        if fact:
            table.add_row(name, Text(fact))
    return table
