"""Start values of a low-rank pair, as PEFT makes them: drawn in fp32 on the CPU, from the adapter's own generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]
"""A [r, in] and B [out, r]."""


def kaiming(rank: int, columns: int, rows: int, generator: torch.Generator) -> Pair:
    """A is Kaiming-uniform with a = sqrt(5), B is zero."""
    a = torch.empty(rank, columns)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    return a, torch.zeros(rows, rank)


def gaussian(rank: int, columns: int, rows: int, generator: torch.Generator) -> Pair:
    """A is normal with a standard deviation of 1 / r, B is zero."""
    return torch.empty(rank, columns).normal_(0.0, 1.0 / rank, generator=generator), torch.zeros(rows, rank)


def orthogonal(rank: int, columns: int, rows: int, generator: torch.Generator) -> Pair:
    """A and B are random, made of two halves of one orthogonal basis, so that B A is zero. The rank is even."""
    basis, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    a = torch.randn(columns, rank // 2, generator=generator).mm(basis[0::2]).T / 10.0
    b = torch.randn(rank // 2, rows, generator=generator).T.mm(basis[1::2]) / 10.0
    return a, b


STARTS: Mapping[bool | str, Callable[[int, int, int, torch.Generator], Pair]] = {
    True: kaiming,
    "gaussian": gaussian,
    "orthogonal": orthogonal,
}
"""The starts by `init_lora_weights`; each takes rank, inputs, outputs and the generator."""
