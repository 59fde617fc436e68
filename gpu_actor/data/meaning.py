"""Columns that change what a record means whatever its format, by the names that public data sets give them.

A format that does not read such a column must refuse it: without it another sample would be learned. All other columns
that a format does not read (an `id`, a `source`, a `score`) say something about the record and are only reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

Kind = Literal[
    "label",
    "0-1 label",
    "verdict",
    "weight",
    "loss mask",
    "attention mask",
    "packing",
    "reference",
    "media",
    "template arguments",
    "tools",
    "system",
    "history",
    "context",
    "question",
    "prompt",
    "thought",
]
"""What a column is for."""

_NAMES: Mapping[Kind, tuple[str, ...]] = {
    "label": ("label", "kto_tag", "desirable", "is_desirable"),
    "verdict": (
        *("accepted", "is_accepted", "correct", "is_correct", "good", "is_good", "preferred", "is_preferred"),
        *("thumbs_up", "train", "trainable", "is_valid"),
    ),
    "weight": (
        *("weight", "weights", "sample_weight", "sample_weights", "example_weight", "loss_weight", "loss_weights"),
        "importance_weight",
    ),
    "loss mask": (
        *("loss_mask", "loss_masks", "mask", "masks", "assistant_mask", "assistant_masks", "completion_mask"),
        *("response_mask", "label_mask", "labels_mask", "target_mask", "prompt_mask", "train_mask"),
    ),
    "attention mask": ("attention_mask", "chosen_attention_mask", "rejected_attention_mask"),
    "packing": ("position_ids", "seq_lengths", "seq_idx", "cu_seqlens", "cu_seq_lens", "segment_ids"),
    "reference": (
        *("ref_chosen_logps", "ref_rejected_logps", "reference_chosen_logps", "reference_rejected_logps"),
        *("ref_chosen_logp", "ref_rejected_logp", "reference_chosen_logp", "reference_rejected_logp"),
    ),
    "media": (
        *("image", "images", "video", "videos", "audio", "audios", "image_path", "image_paths", "image_url"),
        *("image_urls", "pixel_values", "video_path", "audio_path"),
    ),
    "template arguments": ("chat_template_kwargs",),
    "tools": (
        *("tools", "functions", "tool_defs", "tool_definitions", "available_tools", "function_definitions"),
        *("tool_schemas", "tools_schema", "function_schemas"),
    ),
    "system": ("system", "system_prompt", "system_message", "sys_prompt", "system_content", "system_instruction"),
    "history": ("history", "chat_history", "conversation_history", "dialogue_history", "previous_messages"),
    "context": ("context", "contexts", "documents", "document", "passage", "passages"),
    "question": ("question", "query", "problem"),
    "prompt": ("prompt",),
    "thought": (
        *("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "rationale", "chain_of_thought"),
        *("cot", "reasoning_trace", "complex_cot", "scratchpad", "thinking_trajectory", "thinking_trajectories"),
    ),
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names}
_BOOLEANS = ("true", "false")  # as a CSV file has them


def kind_of(column: str, value: Any) -> Kind | None:
    """What a column changes with this value; None where it changes nothing.

    Args:
        column: Its name in the file; capitals, blanks and hyphens make no difference.
        value: What a record has there.
    """
    kind = _KINDS.get(_plain_name(column))
    if kind == "label" and str(value).strip() in ("0", "1"):
        return "0-1 label"
    return kind if kind is not None and _changes(kind, value) else None


def _changes(kind: Kind, value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return False
    if kind == "label":  # other numbers and names are the classes of a classification
        return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _BOOLEANS)
    if kind == "verdict":
        return value is False or (isinstance(value, str) and value.strip().lower() == "false")
    if kind == "weight":
        return not all(_is_one(item) for item in _items(value))
    if kind == "attention mask":  # all ones, as every tokenizer writes it for a sample without padding
        return bool(value) and not (isinstance(value, list) and all(item == 1 for item in value))
    if kind == "loss mask":
        return value is False or value == 0 or not is_blank(value)
    return kind == "reference" or not is_blank(value)


def is_blank(value: Any) -> bool:
    """Whether a column says nothing: it is missing, null or empty, also where a CSV file has that as text."""
    return value.strip() in ("", "[]", "null") if isinstance(value, str) else not value


def holds_something(value: Any) -> bool:
    """Whether a column has a value at all: 0 and false are values, null and what is empty are none."""
    return isinstance(value, bool | int | float) or not is_blank(value)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_one(value: Any) -> bool:
    try:
        return float(value) == 1
    except (TypeError, ValueError, OverflowError):
        return False


@lru_cache(maxsize=4096)
def _plain_name(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower()) if len(column) <= 64 else ""


def is_said(value: Any, elsewhere: str) -> bool:
    """Whether every text of a value stands in another text already, as a question does in the prompt made of it."""
    return all(text.strip() in elsewhere for text in texts(value))


def texts(value: Any) -> Iterator[str]:
    """All texts in a value, however deep; of numbers and the like their text."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        yield value if isinstance(value, str) else str(value)
        return
    for item in value:
        yield from texts(item)
