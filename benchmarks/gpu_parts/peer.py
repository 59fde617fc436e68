"""The peer: PEFT and a plain training loop, one job after another; its arithmetic written out where it is missing."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gpu_actor.device.cuda_process import prepare_gpu

from .setting import Setting
from .work import RATE, Engine, Job, lora

HAS_PEFT = importlib.util.find_spec("peft") is not None
Values = dict[tuple[str, str], torch.Tensor]  # by (module name, "A" or "B")


class PlainLora(nn.Module):
    """A linear layer with a LoRA branch, computed as PEFT does."""

    def __init__(self, base: nn.Module, rank: int, alpha: int, dropout: float) -> None:
        """Zeros, in fp32 as PEFT's adapters of a half-precision base are."""
        super().__init__()
        self.base, self.scaling, self.dropout = base, alpha / rank, dropout
        make = {"dtype": torch.float32, "device": base.weight.device}
        self.a = nn.Parameter(torch.zeros(rank, base.in_features, **make))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, **make))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y = W x + s B A dropout(x)."""
        result = self.base(x)
        dropped = F.dropout(x if torch.is_autocast_enabled(x.device.type) else x.to(self.a.dtype), self.dropout)
        return result + F.linear(F.linear(dropped, self.a), self.b) * self.scaling


class Peer:
    """One job in PEFT: a model with an adapter, and its optimizer. `close` gives the model back."""

    def __init__(self, setting: Setting, model: Any, job: Job, start: Values | None = None) -> None:
        """Wrap the model, which is changed in place until `close`."""
        self.setting, self.job, self._model = setting, job, model
        torch.backends.cuda.enable_cudnn_sdp(True)  # as torch has it by default
        self._wrapped, self.parameters = (_with_peft if HAS_PEFT else _written_out)(model, job)
        for key, values in (start or {}).items():
            self.parameters[key].data.copy_(values)
        trained = list(self.parameters.values())
        self._optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
        half = model.dtype != torch.float32
        device = setting.device
        self._autocast = torch.autocast(device, model.dtype) if half else contextlib.nullcontext()
        self._wrapped.train()

    def step(self, samples: list[list[int]]) -> float:
        """One optimizer step on a padded batch; the loss."""
        batch = {name: rows.to(self.setting.device) for name, rows in padded(samples).items()}
        with self._autocast:
            loss = self._wrapped(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def train(self) -> list[float]:
        """All steps; the losses."""
        vocabulary = int(self._model.config.vocab_size)
        return [self.step(samples) for samples in self.job.samples(vocabulary)]

    def close(self) -> None:
        """The model is what it was."""
        if HAS_PEFT:
            self._wrapped.unload()
        else:
            for name, module in list(self._model.named_modules()):
                if isinstance(module, PlainLora):
                    self._model.set_submodule(name, module.base)
        self._model.eval().requires_grad_(False)
        prepare_gpu(self.setting.device)


def _with_peft(model: Any, job: Job) -> tuple[Any, Values]:
    from peft import LoraConfig, get_peft_model

    given = lora(job)
    config = LoraConfig(
        r=given.r,
        lora_alpha=given.lora_alpha,
        lora_dropout=given.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    values: Values = {}
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            values[module, rest[0]] = parameter
    return wrapped, values


def _written_out(model: Any, job: Job) -> tuple[Any, Values]:
    given, values = lora(job), Values()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            layer = PlainLora(module, given.r, int(given.lora_alpha), given.lora_dropout)
            nn.init.normal_(layer.a, std=0.02)
            model.set_submodule(name, layer)
            values |= {(name, "A"): layer.a, (name, "B"): layer.b}
    return model, values


def start_values(engine: Engine, job: Job) -> Values:
    """What the engine's adapter of a job starts from."""
    weights = engine.base.new_adapter(lora(job))
    weights.initialise(engine.tenant(job).spec.training.seed)
    return values_of(weights)


def values_of(weights: Any) -> Values:
    """An adapter's tensors as the peer names them."""
    return {
        (weights.names[index], which): tensor.detach().clone()
        for index, pair in weights.layers.items()
        for which, tensor in zip("AB", pair, strict=True)
    }


def difference(one: Mapping[tuple[str, str], torch.Tensor], other: Mapping[tuple[str, str], torch.Tensor]) -> float:
    """The largest difference of any value."""
    return max(float((one[key].detach() - other[key].detach()).abs().max()) for key in one)


def cosine(one: Values, other: Values, start: Values) -> float:
    """Of the two whole updates since `start`."""
    updates = [torch.cat([(end[key].detach() - start[key]).flatten() for key in start]) for end in (one, other)]
    return float(F.cosine_similarity(*updates, dim=0))


def padded(samples: list[list[int]]) -> dict[str, torch.Tensor]:
    """Samples padded on the right to the longest of them, with attention mask and labels."""
    longest = max(len(ids) for ids in samples)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return {
        "input_ids": pad(samples, 0),
        "attention_mask": pad([[1] * len(ids) for ids in samples], 0),
        "labels": pad(samples, -100),
    }
