"""Jobs and numbers in words: what a person reads on a terminal, without colour or layout."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

View = Mapping[str, Any]
"""A job or an actor as the controller shows it: plain values by name."""

LIVE_STATES = ("RUNNING", "QUEUED", "PAUSED")
"""The states of a job that is not over, in the order in which they are shown."""

NONE = "-"


def duration(seconds: float | None) -> str:
    """A span of time in its two largest units: `8s`, `3m 05s`, `2h 10m`, `4d 3h`."""
    if seconds is None or seconds < 0:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def size(count: float | None) -> str:
    """A number of bytes in binary units: `1.5 GiB`."""
    if count is None:
        return NONE
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def amount(count: float | None) -> str:
    """A count in short form: `812`, `12.3k`, `4.5M`."""
    if count is None:
        return NONE
    if count < 10_000:
        return f"{count:.0f}"
    return f"{count / 1000:.1f}k" if count < 999_950 else f"{count / 1e6:.1f}M"


def loss(value: float | None) -> str:
    """A loss with four decimals."""
    return NONE if value is None else f"{value:.4f}"


def clock(seconds: float | None) -> str:
    """A moment in local time."""
    return NONE if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def plural(count: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def steps(view: View) -> str:
    """The steps made out of those to make: `12/300`."""
    return f"{view['step']}/{view['total_steps'] or '?'}"


def base_names(refs: Iterable[str]) -> dict[str, str]:
    """Base models as people know them, by reference: a hub id, or as much of a folder's end as no other one has.

    A folder of the hub's cache is called by the id that it was loaded for.
    """
    wanted = dict.fromkeys(refs)
    parts = {ref: _base_parts(ref) for ref in wanted}
    names = {}
    for ref, own in parts.items():
        others = [other for other in parts.values() if other != own]
        length = next(
            (size for size in range(1, len(own)) if all(own[-size:] != other[-size:] for other in others)), len(own)
        )
        names[ref] = "/".join(own[-length:])
    return names


def _base_parts(ref: str) -> list[str]:
    """The parts of a name, of which the last alone may do; a hub id has one."""
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]", ref)
    if cached:
        return [cached[1].replace("--", "/")]
    return [part for part in re.split(r"[/\\]", ref) if part] if ref[:1] in "./~" else [ref]


def eta(view: View) -> str:
    """When a job will be over, from now: by the forecast, or by its own speed of late; `~` before a guess."""
    if view["state"] not in ("RUNNING", "QUEUED"):
        return NONE
    expected = view["forecast"]
    if view["state"] == "RUNNING" and view["eta_s"] is not None and (expected is None or expected["guess"]):
        return duration(view["eta_s"])
    return NONE if expected is None else f"{'~' if expected['guess'] else ''}{duration(expected['finish_s'])}"


def span(expected: View) -> str:
    """When it will be over by a forecast, with how sure that is: `in 10m 00s (9m 10s to 12m 30s)`."""
    if expected["guess"]:
        return f"in about {duration(expected['finish_s'])}, a guess: too little was measured"
    earliest, latest = duration(expected["earliest_s"]), duration(expected["latest_s"])
    return f"in {duration(expected['finish_s'])} ({earliest} to {latest})"


def share(view: View) -> float:
    """How much of a job is done, from 0 to 1."""
    total = view["total_steps"]
    return min(1.0, view["step"] / total) if total else float(view["state"] == "SUCCEEDED")


def seconds_run(view: View) -> float | None:
    """Seconds from a job's first start to its end, or to now."""
    if view["started_at"] is None:
        return None
    end: float = view["finished_at"] if view["finished_at"] is not None else time.time()
    return end - float(view["started_at"])


def remark(view: View) -> str:
    """What a person should know beside a job's state: why it waits, why it ended, what was left out of its data."""
    if view["state"] in ("QUEUED", "PAUSED"):
        return view["waiting_for"] or view["reason"] or ""
    if view["state"] != "RUNNING":
        return view["reason"] or ""
    notes = []
    if view["unsaved"]:
        notes.append(view["unsaved"])
    if view["truncated"]:
        notes.append(f"{plural(view['truncated'], 'sample')} cut")
    if view["dropped"]:
        notes.append(f"{plural(view['dropped'], 'sample')} dropped")
    if view["shortened"]:
        notes.append(f"{plural(view['shortened'], 'conversation')} shortened by the chat template")
    if view["unreached"]:
        notes.append(f"no gradient reached {view['unreached']}")
    if view["unread_columns"]:
        notes.append(f"columns not read: {view['unread_columns']}")
    return ", ".join(notes)


def progress_line(view: View) -> str:
    """One plain line about one job, for logs and pipes."""
    parts = [view["name"], view["state"]]
    if view["step"]:
        parts.append(f"step {steps(view)} ({share(view):.0%})")
    elif view["state"] == "RUNNING":
        parts.append("preparing")
    if view["loss"] is not None:
        parts.append(f"loss {loss(view['loss'])}")
    if view["state"] == "RUNNING" and view["step"]:
        parts += [f"{amount(view['tokens_per_s'])} tokens/s", f"ETA {eta(view)}"]
    if view["state"] == "SUCCEEDED":
        parts += [f"{duration(seconds_run(view))}", view["output_dir"]]
    parts.append(remark(view))
    return "  ".join(part for part in parts if part)


def by_liveliness(views: Iterable[View]) -> list[View]:
    """Jobs that run first, then those that wait, then those that are over, each in the order of submission."""
    return sorted(views, key=lambda view: (*LIVE_STATES, view["state"]).index(view["state"]))


def log_line(entry: Mapping[str, Any]) -> str:
    """One event, or one row of a job's metrics, as a line."""
    parts = [clock(entry.get("time"))]
    if "message" in entry:
        return "  ".join([*parts, str(entry["message"])])
    if "step" in entry:
        parts.append(f"step {entry['step']}")
    if entry.get("epoch") is not None:
        parts.append(f"epoch {entry['epoch']:.2f}")
    for key, label, form in (
        ("loss", "loss", ".4f"),
        ("eval_loss", "eval loss", ".4f"),
        ("learning_rate", "lr", ".3g"),
        ("grad_norm", "grad norm", ".3g"),
        ("tokens", "tokens", ".0f"),
    ):
        if entry.get(key) is not None:
            parts.append(f"{label} {entry[key]:{form}}")
    return "  ".join(parts)


def finite(value: Any) -> Any:
    """The same document with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
