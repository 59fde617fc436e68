"""Dropout whose mask is a function of a seed and a layer alone, never of the company."""

from __future__ import annotations

import torch


def dropout_mask(seed: int, index: int, probability: float, like: torch.Tensor) -> torch.Tensor:
    """Which inputs of layer `index` survive dropout: a function of the seed and the layer alone.

    16 random bits decide each value, which is several times faster on a CPU than drawing floats; the probability is
    rounded to a multiple of 2^-16 for that.

    Returns:
        bool, the shape of `like`; True with probability 1 - `dropped_share(probability)`.
    """
    generator = torch.Generator(device=like.device).manual_seed(mix_seed(seed, index))
    random_words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    random_words.random_(-(2**63), None, generator=generator)
    bits = random_words.view(torch.int16)[: like.numel()].view(like.shape)
    return bits >= round(probability * 2**16) - 2**15


def dropped_share(probability: float) -> float:
    """The probability that `dropout_mask` really uses."""
    return round(probability * 2**16) / 2**16


def mix_seed(seed: int, index: int) -> int:
    """A well-spread 63-bit seed for stream `index` of `seed` (the finaliser of splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF
