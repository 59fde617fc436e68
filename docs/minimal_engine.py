"""The engine in one file: three LoRA adapters trained at once on one frozen base model, in shared batches.

    python docs/minimal_engine.py

It leaves out what the rest of `gpu_actor` is for: real data, memory, checkpoints, other kinds of adapter, quantised
bases, models that cannot be packed. What it does, it does exactly: at the end the first adapter is trained again
without company, and comes out the same. It needs torch and transformers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

Sample = torch.Tensor  # int64 [length]


class Adapter:
    """One tenant: its matrices, its optimizer, its data, its own place in them."""

    def __init__(self, rank: int, alpha: float, rate: float, samples: Sequence[Sample], seed: int) -> None:
        self.rank, self.scale, self.rate, self.samples = rank, alpha / rank, rate, samples
        self.random = torch.Generator().manual_seed(seed)
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}  # layer name -> A [r, in], B [out, r]
        self.losses: list[float] = []

    def add_layer(self, name: str, linear: nn.Linear) -> None:
        """A starts random and B at zero, so that the adapter starts as no change at all."""
        a = torch.randn(self.rank, linear.in_features, generator=self.random) / linear.in_features**0.5
        self.pairs[name] = nn.Parameter(a), nn.Parameter(torch.zeros(linear.out_features, self.rank))

    def start(self) -> None:
        """An optimizer over this adapter and nothing else."""
        self.start_values = {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in self.pairs.items()}
        self.optimizer = torch.optim.AdamW([m for pair in self.pairs.values() for m in pair], lr=self.rate)

    def micro_batch(self, step: int, size: int = 2) -> list[Sample]:
        """Which samples come next: a function of the step alone."""
        return [self.samples[(step * size + i) % len(self.samples)] for i in range(size)]


@dataclass
class Segment:
    """The rows [start, end) of the shared batch that one adapter occupies."""

    adapter: Adapter
    start: int
    end: int


class Route:
    """What the forward that is running serves: read by every hooked layer."""

    segments: Sequence[Segment] = ()
    lengths: Sequence[int] = ()


class MultiAdapterLinear(nn.Module):
    """y[s] = x[s] W^T + scale x[s] A^T B^T, with the A and B of the adapter of the rows s of each segment."""

    def __init__(self, name: str, base: nn.Linear, route: Route) -> None:
        super().__init__()
        self.name, self.base, self.route = name, base, route

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, T, in] -> [1, T, out]."""
        parts = []
        for segment in self.route.segments:  # the base product segment by segment, so that no row sees its company
            rows = x[:, segment.start : segment.end]
            a, b = segment.adapter.pairs[self.name]
            parts.append(self.base(rows) + segment.adapter.scale * (rows @ a.t() @ b.t()))
        return torch.cat(parts, dim=1)


def use_packed_attention(model: LlamaForCausalLM, route: Route) -> None:
    """Every sequence of the row sees itself alone: one call of attention for each."""

    def packed(
        _module: nn.Module,
        query: torch.Tensor,  # each [1, heads, T, size]
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: None,
        scaling: float | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        parts = zip(*(t.split(list(route.lengths), dim=2) for t in (query, key, value)), strict=True)
        outputs = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in parts
        ]
        return torch.cat(outputs, dim=2).transpose(1, 2), None

    AttentionInterface.register("packed", packed)
    AttentionMaskInterface.register("packed", lambda *_, **__: None)
    model.set_attn_implementation("packed")


def hook(model: LlamaForCausalLM, route: Route) -> dict[str, nn.Linear]:
    """Freeze the base, and let its linear layers (but the output head) serve many adapters."""
    model.requires_grad_(False).eval()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not model.lm_head}
    for name, linear in linears.items():
        model.set_submodule(name, MultiAdapterLinear(name, linear, route))
    use_packed_attention(model, route)
    return linears


def shared_step(model: LlamaForCausalLM, route: Route, adapters: Sequence[Adapter], step: int) -> None:
    """One forward and one backward for all; then each adapter clips, steps and logs for itself."""
    chosen = [adapter.micro_batch(step) for adapter in adapters]
    sequences = [sample for samples in chosen for sample in samples]
    ends = torch.tensor([sum(map(len, samples)) for samples in chosen]).cumsum(0).tolist()
    route.lengths = [len(sample) for sample in sequences]
    route.segments = [Segment(*parts) for parts in zip(adapters, [0, *ends[:-1]], ends, strict=True)]
    positions = torch.cat([torch.arange(n) for n in route.lengths])[None]  # from 0 in every sequence; no padding
    hidden = model.model(torch.cat(sequences)[None], position_ids=positions, use_cache=False).last_hidden_state[0]
    losses = []
    for segment, samples in zip(route.segments, chosen, strict=True):
        states = hidden[segment.start : segment.end].split([len(sample) for sample in samples])
        rows = torch.cat([state[:-1] for state in states])  # each position predicts the next token of its own sequence
        targets = torch.cat([sample[1:] for sample in samples])
        losses.append(F.cross_entropy(model.lm_head(rows), targets))  # the mean over this adapter's tokens alone
    torch.stack(losses).sum().backward()  # the sum keeps the adapters' gradients apart: none occurs in another's loss
    for adapter, loss in zip(adapters, losses, strict=True):
        nn.utils.clip_grad_norm_([m for pair in adapter.pairs.values() for m in pair], 1.0)
        adapter.optimizer.step()
        adapter.optimizer.zero_grad()
        adapter.losses.append(loss.item())


def tiny_config() -> LlamaConfig:
    """Two layers, small enough for a second of training."""
    return LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def train(settings: Sequence[tuple[int, float, float, int]], steps: int = 30) -> list[Adapter]:
    """Train adapters of (rank, alpha, learning rate, seed) together on a tiny random base model."""
    torch.manual_seed(0)
    model, route = LlamaForCausalLM(tiny_config()), Route()
    linears = hook(model, route)
    adapters = []
    for rank, alpha, rate, seed in settings:
        random = torch.Generator().manual_seed(seed)
        samples = [torch.randint(3, 128, (8 + 3 * i,), generator=random) for i in range(6)]
        adapters.append(Adapter(rank, alpha, rate, samples, seed))
        for name, linear in linears.items():
            adapters[-1].add_layer(name, linear)
        adapters[-1].start()
    for step in range(steps):
        shared_step(model, route, adapters, step)
    return adapters


if __name__ == "__main__":
    jobs = [(8, 16.0, 1e-2, 1), (4, 8.0, 3e-3, 2), (16, 16.0, 1e-2, 3)]
    together, alone = train(jobs), train(jobs[:1])[0]
    for number, adapter in enumerate(together):
        print(f"adapter {number}: rank {adapter.rank}, loss {adapter.losses[0]:.3f} -> {adapter.losses[-1]:.3f}")
    pairs = [(alone.pairs[name], together[0].pairs[name]) for name in alone.pairs]
    same = all(torch.equal(a, other_a) and torch.equal(b, other_b) for (a, b), (other_a, other_b) in pairs)
    print(f"adapter 0 without company: loss {alone.losses[-1]:.3f}; the same to the bit: {same}")
