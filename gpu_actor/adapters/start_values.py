"""Start values of an adapter's tensors, as PEFT makes them: drawn in fp32 on the CPU, from a generator of their own."""

from __future__ import annotations

import math

import torch
from torch import nn

from gpu_actor.adapters.targets import LayerPlan

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


def pissa(weight: torch.Tensor, plan: LayerPlan, rounds: int | None, seed: int) -> Pair:
    """The largest singular values of the base weight, shared out evenly between A and B (arXiv 2404.02948).

    Args:
        weight: The base weight [out, in]; decomposed in fp32, where it lies.
        plan: Rank and scale.
        rounds: Rounds of the approximate decomposition; None makes the exact one.
        seed: Decides the approximate one.
    """
    weight = weight.to(torch.float32)
    if rounds is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        devices = [weight.device] if weight.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            left, values, columns = torch.svd_lowrank(weight, plan.rank, niter=rounds)
        right = columns.t()
    root = torch.sqrt(values[: plan.rank] / plan.scaling)
    return root[:, None] * right[: plan.rank], left[:, : plan.rank] * root


def vera_projections(shapes: tuple[tuple[int, int], tuple[int, int]], key: int) -> Pair:
    """VeRA's shared random matrices (arXiv 2310.11454): Kaiming-uniform, decided by key and shapes alone."""
    generator = torch.Generator().manual_seed(key)
    a, b = (torch.empty(shape) for shape in shapes)
    for matrix in (a, b):
        bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(matrix.shape[1])
        matrix.uniform_(-bound, bound, generator=generator)
    return a, b
