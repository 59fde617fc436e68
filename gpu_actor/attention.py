"""Attention over a packed row: every sequence sees itself alone.

Registered with transformers' attention interface, so that the stock models call it. Each sequence is one call of
scaled-dot-product attention; causal, sliding-window, soft-cap and grouped-query attention are honoured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

LengthsOf = Callable[[], tuple[int, ...]]


def register_packed_attention(name: str, lengths: LengthsOf) -> None:
    """Make packed attention known to transformers under `name`.

    Args:
        name: The value for a model's `attn_implementation`; one per base model, since `lengths` is bound to it.
        lengths: Gives the sequence lengths of the row that is being computed; they add up to its width.
    """

    def packed(
        _module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        return packed_attention(query, key, value, lengths(), scaling, sliding_window, softcap), None

    AttentionInterface.register(name, packed)
    AttentionMaskInterface.register(name, lambda *_, **__: None)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention within each sequence of a packed row.

    Args:
        query: [1, heads, T, head size].
        key: [1, key-value heads, T, head size]; heads is a multiple of key-value heads.
        value: [1, key-value heads, T, value size].
        lengths: Sequence lengths, adding up to T.
        scaling: Factor on the scores; None is 1 / sqrt(head size).
        sliding_window: A query sees this many latest positions, itself included.
        softcap: Scores go through softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118).

    Returns:
        [1, T, heads, value size].

    Raises:
        ValueError: The lengths do not add up to T.
    """
    if sum(lengths) != query.shape[2]:
        raise ValueError(f"sequence lengths add up to {sum(lengths)}, the packed row has {query.shape[2]} tokens")
    # split, not slicing: its backward is one concatenation instead of one full-size zero tensor per sequence
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [_one_sequence(q, k, v, scaling, sliding_window, softcap) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _one_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if sliding_window is not None and length > sliding_window:
        mask = window_mask(length, sliding_window, query.device)
    if softcap is not None:
        return _capped(query, key, value, scaling, mask, softcap)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    mask: torch.Tensor | None,
    softcap: float,
) -> torch.Tensor:
    """Attention with capped scores: no fused kernel offers it, so it is written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    length = query.shape[2]
    if mask is None:
        mask = window_mask(length, length, query.device)
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """bool [length, length]: query i sees keys i - window + 1 ... i."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
