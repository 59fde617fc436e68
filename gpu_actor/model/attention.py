"""Attention over a packed row: every sequence sees itself alone.

Registered with transformers' attention interface, so that the stock models call it. Each sequence is one call of
scaled-dot-product attention, or on a GPU the whole row is one call (`varlen.py`, with capped scores `flex.py`); causal,
sliding-window, soft-cap and grouped-query attention are honoured. Whatever else a model asks of its attention (sinks,
position biases, chunks) raises: the base is then served another way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from gpu_actor.model.flex import CappedAttention, serves_flex
from gpu_actor.model.varlen import serves_varlen, varlen_attention

LengthsOf = Callable[[], tuple[int, ...]]
BordersOf = Callable[[], torch.Tensor | None]


class AttentionCache(Protocol):
    """Keys and values of earlier tokens, which a forward adds to and may attend to."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor | None:
        """What `packed_attention` returns, over earlier tokens too; None: there are none, it is to be computed."""


CacheOf = Callable[[], AttentionCache | None]

# What transformers 5.23 hands to an attention function without changing its result. `dropout` is the model's own,
# which is 0 here; a packed row has the lengths of its sequences from elsewhere.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "deterministic",
        "dropout",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


class UnsupportedAttentionError(ValueError):
    """A model asks something of its attention that packed attention does not do."""


class WindowsSeen:
    """The windows of the masks that a model builds, and those that its layers pass on (None: no window).

    Both must be the same: a model that keeps its window in the mask alone would lose it, as packed attention is
    given no mask.

    Attributes:
        open: Whether masks are still recorded; `close` ends it, so that no training step pays for it.
    """

    def __init__(self, name: str) -> None:
        """Record what is asked under the name of an attention, whose masks transformers lets be made until `close`."""
        self._name = name
        self.open = True
        self.masks: set[int | None] = set()
        self.layers: set[int | None] = set()

    def check(self) -> None:
        """Raise unless the layers were here, and pass on the windows of the masks.

        Raises:
            UnsupportedAttentionError: They were not, or do not.
        """
        if not self.layers:
            raise UnsupportedAttentionError("its attention is not called through transformers' attention interface")
        if self.masks and self.masks != self.layers:
            shown = [", ".join(map(str, sorted(windows, key=str))) or "none" for windows in (self.masks, self.layers)]
            raise UnsupportedAttentionError(f"its masks have the windows {shown[0]}, its layers pass on {shown[1]}")

    def close(self) -> None:
        """Record no more: the probe is over.

        For an attention without masks of its own transformers asks nothing further. Else it would look in every
        forward whether the row is packed, and wait for the device to say so.
        """
        self.open = False
        AttentionMaskInterface._global_mapping.pop(self._name, None)


def register_packed_attention(
    name: str,
    lengths: LengthsOf,
    borders: BordersOf | None = None,
    cache: CacheOf = lambda: None,
    capped: CappedAttention | None = None,
) -> WindowsSeen:
    """Make packed attention known to transformers under `name`.

    Args:
        name: The value for a model's `attn_implementation`; one per base model, since `lengths` is bound to it.
        lengths: Gives the sequence lengths of the row that is being computed; they add up to its width.
        borders: Gives the same row's borders, int32 [sequences + 1]; None: there is no kernel that wants them.
        cache: Gives what keeps the keys and values of the row, if anything does.
        capped: Computes the row where scores are capped, if it can; None: each sequence is computed for itself.

    Returns:
        The windows that were asked for, for the probe at load.
    """
    seen = WindowsSeen(name)

    def packed(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        _check_honoured(module, attention_mask, others)
        seen.layers.add(sliding_window)
        kept = cache()
        if kept is not None and (out := kept.attend(query, key, value, scaling, sliding_window, softcap)) is not None:
            return out, None
        if borders is not None and serves_varlen(query, value, softcap) and (found := borders()) is not None:
            longest = max(lengths())
            return varlen_attention(query, key, value, found, longest, scaling, sliding_window), None
        if capped is not None and softcap is not None and serves_flex(query, value):
            out = capped(query, key, value, lengths(), scaling, sliding_window, softcap)
            if out is not None:
                return out, None
        return packed_attention(query, key, value, lengths(), scaling, sliding_window, softcap), None

    def no_mask(
        *_: Any, mask_function: Callable[..., Any], local_size: int | None = None, q_length: int, **__: Any
    ) -> None:
        if (
            seen.open and len(lengths()) == 1
        ):  # with several sequences transformers has hidden the model's own mask behind its own
            _check_mask(mask_function, q_length, local_size)
        seen.masks.add(local_size)

    AttentionInterface.register(name, packed)
    AttentionMaskInterface.register(name, no_mask)
    return seen


def _check_honoured(module: torch.nn.Module, attention_mask: torch.Tensor | None, others: dict[str, Any]) -> None:
    """Refuse what a layer asks for and packed attention does not do.

    Raises:
        UnsupportedAttentionError: A mask or bias tensor, attention to later positions, or an unknown argument.
    """
    if attention_mask is not None:
        raise UnsupportedAttentionError("its layers bring a mask or position bias of their own")
    causal = others.pop("is_causal", None)
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise UnsupportedAttentionError("its attention is not causal (is_causal=False)")
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _WITHOUT_EFFECT)
    if unknown:
        raise UnsupportedAttentionError(f"its attention takes {', '.join(unknown)}, which packed attention does not")


def _check_mask(mask_function: Callable[..., Any], length: int, window: int | None) -> None:
    """Compare a model's mask with the causal one, windowed by `window`, near the start and around its border.

    Raises:
        UnsupportedAttentionError: It is another mask (chunks, both directions, blocks).
    """
    borders = {0} if window is None else {0, window, 2 * window}
    for border in borders:
        first = max(0, border - length // 2)
        query = torch.arange(first, first + length)[:, None]
        key = torch.cat([torch.arange(length), torch.arange(first, first + length)])[None, :]
        expected = (key <= query) if window is None else (key <= query) & (query - key < window)
        mask = torch.as_tensor(mask_function(0, 0, query, key)).expand_as(expected)
        if not torch.equal(mask.cpu(), expected):
            raise UnsupportedAttentionError("its mask is neither causal nor a causal window")


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
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if mask is None:
        mask = window_mask(length, length, query.device)
    return capped_attention(query, key, value, scaling, mask, softcap)


def capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    mask: torch.Tensor | None,
    softcap: float,
) -> torch.Tensor:
    """Attention with capped scores, written out: the fused kernels of a CPU and of fp32 do not offer it.

    Args:
        query: [rows, heads, T, size].
        key: [rows, heads, S, size].
        value: [rows, heads, S, value size].
        scaling: Factor on the scores; None is 1 / sqrt(size).
        mask: bool, broadcast over [rows, heads, T, S]: what each query sees; None: everything.
        softcap: Scores go through softcap * tanh(score / softcap).

    Returns:
        [rows, heads, T, value size].
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """bool [length, length]: query i sees keys i - window + 1 ... i."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
