"""The model card: what a merged model or an adapter was made from, as the README.md of its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gpu_actor.adapters.kinds import kind_of
from gpu_actor.adapters.kinds.base import COMMON_FIELDS
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.messages import plain
from gpu_actor.paths import file_names
from gpu_actor.paths.locations import is_hub_id, looks_like_path

_CURVE_ROWS = 12


def model_card(name: str, base_model: str, which: str, job: Mapping[str, Any], folder: Path, *, merged: bool) -> str:
    """The text of a model card. Paths of this machine are left out of it but for their last part.

    Args:
        name: Of the job.
        base_model: As the job names it.
        which: Which step it is, in words.
        job: The job's settings; may be empty.
        folder: The job's output folder; its metrics are the loss curve.
        merged: Whether the weights are those of a whole model; else they are an adapter's.
    """
    data = job.get("dataset", {})
    paths = [str(data["path"])] if "path" in data else []
    base_on_hub = is_hub_id(base_model) and not looks_like_path(base_model)
    head: dict[str, Any] = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "loray"],
    }
    head |= {"base_model": base_model} if base_on_hub else {}
    named = [path for path in paths if is_hub_id(path) and not looks_like_path(path)]
    head |= {"datasets": named} if named else {}
    what = "the base model with the adapter merged into it" if merged else "an adapter in PEFT's form"
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {plain(name)}",
        "",
        f"This is {what}, trained with Loray on `{_shown_path(base_model)}` ({which}).",
        "",
        *_usage(base_model if base_on_hub else _shown_path(base_model), merged=merged),
    ]
    lines += ["## Data", "", *(f"- `{_shown_path(path)}`" for path in paths), ""] if paths else []
    lines += _settings(job)
    lines += _curve(folder)
    return "\n".join(lines)


def _usage(base: str, *, merged: bool) -> list[str]:
    if merged:
        load = ["model = AutoModelForCausalLM.from_pretrained(FOLDER)"]
        imports = ["from transformers import AutoModelForCausalLM"]
    else:
        load = [
            f'model = AutoModelForCausalLM.from_pretrained("{base}")',
            "model = PeftModel.from_pretrained(model, FOLDER)",
        ]
        imports = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    return ["```python", *imports, "", *load, "```", ""]


def _settings(job: Mapping[str, Any]) -> list[str]:
    sections = [section for section in ("lora", "training") if job.get(section)]
    if not sections:
        return []
    lines = ["## Settings", "", "| field | value |", "|---|---|"]
    for section in sections:
        own = _fields_of(job["lora"]) if section == "lora" else tuple(job[section])
        for field, value in job[section].items():
            if field not in own or value in (None, {}, [], ""):
                continue
            shown = _shown_path(value) if isinstance(value, str) and looks_like_path(value) else value
            text = plain(json.dumps(shown)).replace("|", "\\|")
            lines.append(f"| `{section}.{field}` | `{text}` |")
    return [*lines, ""]


def _fields_of(lora: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that an adapter of this kind has; the others are there as they are by default."""
    kind = kind_of(LoraConfig.model_validate(dict(lora), strict=False))
    start = ("init_lora_weights",) if kind.peft_type == "LORA" else ()
    return (*COMMON_FIELDS, *kind.fields, *start, "init_adapter")


def _curve(folder: Path) -> list[str]:
    """The losses at about a dozen steps, evenly spread, the last one among them."""
    rows = _rows(folder / file_names.METRICS)
    losses = [row for row in rows if _number(row.get("loss")) is not None]
    if not losses:
        return []
    evaluated = {row["step"]: row["eval_loss"] for row in rows if _number(row.get("eval_loss")) is not None}
    lines = ["## Loss", "", "| step | loss |" + (" evaluation |" if evaluated else "")]
    lines.append("|---|---|" + ("---|" if evaluated else ""))
    for first, row in _spread(losses):
        line = f"| {row['step']} | {row['loss']:.4f} |"
        if evaluated:
            within = [loss for step, loss in evaluated.items() if first < step <= row["step"]]
            line += f" {within[-1]:.4f} |" if within else " |"
        lines.append(line)
    return [*lines, ""]


def _spread(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """About a dozen rows, each with the step of the one shown before it."""
    count = min(len(rows), _CURVE_ROWS)
    shown = [rows[math.ceil((number + 1) * len(rows) / count) - 1] for number in range(count)]
    return list(zip([-1, *(int(row["step"]) for row in shown)], shown, strict=False))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # an adapter of PEFT has none
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # cut off
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown_path(ref: str) -> str:
    """A hub id as it is; of a path the last part: the others tell of a machine and its people."""
    is_path = looks_like_path(ref) or not is_hub_id(ref)
    return plain(Path(ref).name if is_path else ref).replace("`", "'")
