"""One job on a terminal: its settings and numbers, what happened to it in order, and the curve of its loss."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.formatting import (
    NONE,
    View,
    amount,
    clock,
    duration,
    eta,
    loss,
    plural,
    seconds_run,
    span,
    steps,
)
from orchestrator.terminal.curve import Curve, Point
from orchestrator.terminal.display import state_text

_FIRST, _LAST = 5, 25  # events that are told of a long story


def job_story(view: View, events: Sequence[View], losses: Sequence[Point], evaluations: Sequence[Point]) -> Group:
    """All about one job.

    Args:
        view: The job.
        events: What happened to it, oldest first.
        losses: Step and loss, in order.
        evaluations: Step and evaluation loss, in order.
    """
    parts: list[RenderableType] = [job_details(view)]
    if events:
        parts += [Text("\nwhat happened", style="bold"), _events(events)]
    if len(losses) > 1:
        parts += [_legend(losses, evaluations), Curve(losses, evaluations)]
    return Group(*parts)


def _events(events: Sequence[View]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right", style="dim")
    table.add_column(overflow="fold")
    told = list(events)
    left_out = len(told) - _FIRST - _LAST
    if left_out > 0:
        told = [*told[:_FIRST], {"time": None, "message": f"({left_out} more: `loray logs`)"}, *told[-_LAST:]]
    last: float | None = None
    for event in told:
        since = f"+{duration(event['time'] - last)}" if last is not None and event["time"] else ""
        last = event["time"] or last
        table.add_row(clock(event["time"])[5:], since, Text(str(event["message"])))
    return table


def _legend(losses: Sequence[Point], evaluations: Sequence[Point]) -> Text:
    text = Text("\nloss", style="bold").append(f" {loss(losses[0][1])} to {loss(losses[-1][1])}", style="not bold")
    if evaluations:
        best = min(evaluations, key=lambda point: point[1])
        text.append(f"    o eval loss, lowest {loss(best[1])} at step {best[0]:.0f}", style="not bold")
    return text


def job_details(view: View) -> Table:
    """Everything about one job, one fact a line; of another's, what is for everybody."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    samples = f"{view['samples']} ({view['truncated']} cut, {view['dropped']} dropped)"
    speed = f"{amount(view['tokens_per_s'])} tokens/s"
    facts: list[tuple[str, str]] = [
        ("job", view["name"]),
        ("id", view["id"]),
        ("waits for", view["waiting_for"] or ""),
        ("not saved", view["unsaved"]),
        ("reason", view["reason"] or ""),
        ("base model", view["base_model"]),
        *(_settings(view["spec"]) if view["spec"] else []),
        ("output", view["output_dir"] or ""),
        ("actor", view["actor"] or NONE),
        ("step", f"{steps(view)}, epoch {view['epoch']:.2f}"),
        ("loss", loss(view["loss"])),
        ("eval loss", loss(view["eval_loss"]) if view["eval_loss"] is not None else ""),
        ("speed", speed if view["state"] == "RUNNING" else ""),
        ("over", span(view["forecast"]) if view["forecast"] else "" if eta(view) == NONE else f"in {eta(view)}"),
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


def _settings(spec: View) -> list[tuple[str, str]]:
    lora, training = spec["lora"], spec["training"]
    targets = lora["target_modules"]
    return [
        ("data", f"{spec['dataset']['path']} ({spec['dataset']['format']})"),
        ("adapter", f"r {lora['r']}, alpha {lora['lora_alpha']:g}, dropout {lora['lora_dropout']:g}"),
        ("targets", targets if isinstance(targets, str) else ", ".join(targets)),
        (
            "training",
            f"learning rate {training['learning_rate']:g} ({training['lr_scheduler_type']}), "
            f"batch {training['per_device_train_batch_size']} x {training['gradient_accumulation_steps']}, "
            f"seed {training['seed']}",
        ),
    ]
