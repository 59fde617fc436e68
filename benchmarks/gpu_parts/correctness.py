"""What card there is, and whether the engine computes on it what it should."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.model import attention, flex, varlen
from gpu_actor.training.tenant import Tenant

from .peer import HAS_PEFT, Peer, Values, cosine, difference, start_values, values_of
from .setting import GIB, Setting
from .work import Engine, Job, check, engine, flat, losses, same_steps, tenants_of

_LENGTHS = (37, 64, 11, 50)
# dense bf16 TFLOP/s of the data sheets, by a part of the card's name
_SHEETS = {"H100": 989, "H200": 989, "A100": 312, "A10": 125, "L40": 181, "L4": 121, "4090": 165, "3090": 71}


def card(setting: Setting) -> None:
    """Its name, its memory, and what its matrix products and its memory really do."""
    size = 8192 if setting.on_cuda else 256
    left, right = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * size**3 / _seconds(setting, lambda: left @ right) / 1e12
    moved = 2 * left.nbytes / _seconds(setting, left.clone) / 1e12
    device = torch.device(setting.device)
    setting.emit(
        {
            "what": "card",
            "name": torch.cuda.get_device_name(0) if setting.on_cuda else "CPU",
            "capability": torch.cuda.get_device_capability(0) if setting.on_cuda else None,
            "memory_gib": torch.cuda.get_device_properties(0).total_memory / GIB if setting.on_cuda else None,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": HAS_PEFT,
            "varlen": varlen.has_varlen(device),
            "measured_tflops": flops,
            "measured_terabytes_per_s": moved,
        }
    )


def sheet_tflops(setting: Setting) -> float | None:
    """What the data sheet says of bf16; None of a card that is not on the list."""
    name = torch.cuda.get_device_name(0) if setting.on_cuda else ""
    return next((float(flops) for part, flops in _SHEETS.items() if part in name), None)


def _seconds(setting: Setting, work: Callable[[], Any], times: int = 5) -> float:
    work()
    started = setting.wait()
    for _ in range(times):
        work()
    return (setting.wait() - started) / times


def equal(setting: Setting) -> None:
    """Against PEFT in fp32 and bf16, and every fast way of computing against its plain one."""
    count = 10  # in fewer the direction of a bf16 update is half noise
    for dtype in (torch.float32, torch.bfloat16):
        job = Job("equal", same_steps(_LENGTHS, count), rank=8)
        with engine(setting, setting.model(setting.small, dtype)) as ours:
            start = start_values(ours, job)
            (tenant,) = ours.train([job])
            found, end = losses(tenant), values_of(tenant.weights)
        peer = Peer(setting, setting.model(setting.small, dtype), job, start)
        expected = peer.train()
        theirs: Values = {key: value.detach() for key, value in peer.parameters.items()}
        peer.close()
        name = str(dtype).removeprefix("torch.")
        setting.emit(
            {
                "what": f"engine and PEFT, {name}",
                "steps": count,
                "loss_difference": max(abs(a - b) for a, b in zip(found, expected, strict=True)),
                "value_difference": difference(end, theirs),
                "cosine": cosine(end, theirs, start),
            }
        )
        _fast_ways(setting, dtype)
    _capped_scores(setting)


def _fast_ways(setting: Setting, dtype: torch.dtype) -> None:
    """Grouped products against the loop, attention in one call against each sequence, packed against apart."""
    job = Job("ways", same_steps(_LENGTHS, 1), rank=8)
    with engine(setting, setting.model(setting.small, dtype)) as ours:
        jobs = [dataclasses.replace(job, name=name, rank=rank) for name, rank in (("a", 8), ("b", 4), ("c", 16))]
        parts = [part for one in jobs for part in _noisy(ours.tenant(one)).pending]
        together, gradients = _gradients(ours, parts)
        plain: dict[str, tuple[torch.Tensor, list[torch.Tensor]]] = {}
        routing = getattr(ours.base.body, "routing", None)
        if getattr(routing, "products", None) is not None:
            products, routing.products = routing.products, None
            plain["grouped products and the loop"] = _gradients(ours, parts)
            routing.products = products
        if setting.on_cuda and dtype != torch.float32 and varlen.has_varlen(torch.device(setting.device)):
            fits, attention.serves_varlen = attention.serves_varlen, lambda *_: False
            plain["attention in one call and per sequence"] = _gradients(ours, parts)
            attention.serves_varlen = fits
        alone = [_gradients(ours, [part]) for part in parts]
        plain["packed and apart"] = torch.cat([hidden for hidden, _ in alone]), [g for _, (g,) in alone]
        for what, (hidden, expected) in plain.items():
            scale = hidden.abs().max()
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(gradients, expected, strict=True)]
            setting.emit(
                {
                    "what": f"{what}, {str(dtype).removeprefix('torch.')}",
                    "hidden_difference": float((together - hidden).abs().max() / scale),
                    "gradient_difference": max(errors),
                }
            )


def _capped_scores(setting: Setting) -> None:
    """Capped attention (heads, scale and cap of Gemma 2) in one call against each sequence."""
    lengths, kind = (300, 64, 129, 1), {"device": setting.device, "dtype": torch.bfloat16}
    torch.manual_seed(0)
    parts = [torch.randn(1, heads, sum(lengths), 256, **kind, requires_grad=True) for heads in (8, 4, 4)]
    along = torch.randn(1, sum(lengths), 8, 256, **kind)
    for window in (None, 100):
        out = flex.CappedAttention(compiles=setting.on_cuda)(*parts, lengths, 1 / 16, window, 50.0)
        if out is None:
            setting.emit({"what": "capped attention cannot be compiled here"})
            return
        expected = attention.packed_attention(*parts, lengths, 1 / 16, window, 50.0)
        both = [torch.autograd.grad(made, parts, along) for made in (out, expected)]
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(*both, strict=True)]
        setting.emit(
            {
                "what": f"attention in one call and per sequence, capped, window {window}",
                "hidden_difference": float((out - expected).abs().max() / expected.abs().max()),
                "gradient_difference": max(errors),
            }
        )


def _noisy(tenant: Tenant) -> Tenant:
    """With values all over, so that both factors of each layer have a gradient."""
    generator = torch.Generator().manual_seed(3)
    values = tenant.weights.flat
    values.data.add_(0.02 * torch.randn(values.shape, generator=generator).to(values.device))
    return tenant


def _gradients(ours: Engine, parts: list[MicroBatch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states [T, hidden] and each adapter's gradient of their sum along one direction."""
    weights = [part.weights for part in parts if part.weights is not None]
    for one in weights:
        one.zero_grad()
    hidden = ours.base.hidden(pack(parts, ours.base.device))[0]
    along = torch.randn(hidden.shape[1], generator=torch.Generator().manual_seed(5)).to(hidden.device)
    (hidden.float() @ along).sum().backward()
    ours.base.rest()
    return hidden.detach().float(), [one.gradient.clone() for one in weights]


def isolation(setting: Setting) -> None:
    """What company may and may not do to an adapter."""
    for dtype in (torch.float32, torch.bfloat16):
        with engine(setting, setting.model(setting.small, dtype)) as ours:
            name = str(dtype).removeprefix("torch.")
            if dtype == torch.float32:
                _idle(setting, ours)
            _poisoned(setting, ours, name)
            _company(setting, ours, name)


def _job(name: str, count: int, rank: int = 8) -> Job:
    return Job(name, same_steps(_LENGTHS, count), rank)


def _idle(setting: Setting, ours: Engine) -> None:
    """An adapter that is in no batch keeps every byte."""
    trainer = ours.trainer([_job("busy", 3), _job("idle", 3)], budget=sum(_LENGTHS))
    _, idle = tenants_of(trainer)
    before = flat(idle)
    trainer.step()
    setting.emit({"what": "an idle adapter", "left_out": idle.left_out, "equal": torch.equal(flat(idle), before)})


def _poisoned(setting: Setting, ours: Engine, name: str) -> None:
    """A neighbour's NaN, or its loss times 10,000: mine is finite, and what it is without."""
    count = 2 if setting.quick else 8
    (alone,) = ours.train([_job("mine", count)])
    for what in ("NaN", "loss x 10000"):
        trainer = ours.trainer([_job("bad", count), _job("mine", count)])
        bad, mine = tenants_of(trainer)
        if what == "NaN":
            bad.weights.flat.data.fill_(float("nan"))
        while not trainer.idle:
            if what != "NaN":
                bad._pending = [dataclasses.replace(part, loss_scale=1e4 * part.loss_scale) for part in bad._pending]
            trainer.step()
        setting.emit(
            {
                "what": f"beside {what}, {name}",
                "finite": bool(torch.isfinite(flat(mine)).all()),
                "loss_difference": _loss_difference(mine, alone),
            }
        )


def _company(setting: Setting, ours: Engine, name: str) -> None:
    """Alone against company, over 20 steps; and how much the same job alone differs when it is split otherwise."""
    count = 3 if setting.quick else 20
    mine = _job("mine", count)
    start = start_values(ours, mine)
    (alone,) = ours.train([mine])
    others = [_job("x", count, 4), _job("y", count, 16), _job("z", count)]
    among = ours.train([others[0], mine, *others[1:]])[1]
    trainer = ours.trainer([mine], budget=max(_LENGTHS))
    (split,) = tenants_of(trainer)
    while not trainer.idle:
        if not split._done and len(split.pending) == 1:
            split.rewind_step(split=4)
        trainer.step()
    check(trainer)
    ends = [values_of(tenant.weights) for tenant in (alone, among, split)]
    setting.emit(
        {
            "what": f"alone and in company, {name}",
            "steps": count,
            "loss_difference": _loss_difference(among, alone),
            "value_difference": difference(ends[1], ends[0]),
            "cosine": cosine(ends[1], ends[0], start),
            "noise": float(np.linalg.norm((flat(split) - flat(alone)).double().cpu().numpy())),
            "distance": float(np.linalg.norm((flat(among) - flat(alone)).double().cpu().numpy())),
        }
    )


def _loss_difference(one: Tenant, other: Tenant) -> float:
    return max(abs(a - b) for a, b in zip(losses(one), losses(other), strict=True))
