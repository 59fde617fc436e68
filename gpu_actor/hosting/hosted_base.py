"""A base model that is loaded, and what trains on it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from gpu_actor.contract.config import ActorOptions
from gpu_actor.contract.footprint import first_token_budget, weight_bytes
from gpu_actor.contract.report import ActorPhase, ActorReport
from gpu_actor.device.cuda_process import prepare_gpu
from gpu_actor.device.memory import MemoryMeter, device_name, memory_limit
from gpu_actor.encoding.encoder import Encoder
from gpu_actor.hosting.answering import Answering
from gpu_actor.loading.config_files import load_config
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.count_activations import count_in
from gpu_actor.training.trainer import CoTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostedBase:
    """All that there is once the base model is loaded.

    Attributes:
        base: The frozen base model.
        trainer: Trains the adapters on it; the training thread alone may use it.
        encoder: Encodes data sets and questions with the base model's tokenizer; any thread may use it.
        answering: Answers questions; the training thread alone may go on with it.
        ready: The report of an actor that hosts it, before any adapter came.
    """

    base: BaseModel
    trainer: CoTrainer
    encoder: Encoder
    answering: Answering
    ready: ActorReport

    @classmethod
    def load(cls, options: ActorOptions, memory: MemoryMeter, loading: ActorReport) -> HostedBase:
        """Load the base model, which takes from seconds to minutes.

        Args:
            options: What to load, and how.
            memory: Of the actor's device.
            loading: The actor's report until now; `memory_limit` is what the trainer keeps to.

        Raises:
            LorayError: The base model cannot be served; other errors come from the libraries that load it.
        """
        if options.device == "cpu":
            # Ray sets OMP_NUM_THREADS=1 for actors without a CPU share of their own
            torch.set_num_threads(options.cpu_threads or os.cpu_count() or 1)
        prepare_gpu(options.device, options.memory_share)
        base = BaseModel.load(
            options.base_model,
            options.device,
            options.dtype,
            gradient_checkpointing=options.gradient_checkpointing,
            quantization=options.quantization,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
        )
        for remark in base.remarks:
            logger.warning(remark)
        memory.release()
        ready = replace(
            loading,
            state=ActorPhase.READY,
            reason="; ".join(base.remarks) or None,
            device_name=device_name(options.device),
            memory_idle=memory.used(),
            base_bytes=weight_bytes(base.description, base.dtype.itemsize, options.quantization),
        )
        tokenizer = partial(
            load_tokenizer,
            options.base_model,
            trust_remote_code=options.trust_remote_code,
            vocab_size=base.description.vocab_size,
        )
        budget = options.token_budget or _first_budget(base, options, loading.memory_limit - memory.used())
        trainer = CoTrainer(base, budget, loading.memory_limit)
        encoder = Encoder(
            options.base_model,
            options.trust_remote_code,
            base.description.vocab_size,
            loading.memory_limit if options.device == "cpu" else memory_limit("cpu"),
        )
        return cls(base, trainer, encoder, Answering(base, trainer, cache(tokenizer)), ready)

    def report(self) -> ActorReport:
        """The state of the actor and of its adapters between two shared batches."""
        trainer = self.trainer
        return replace(
            self.ready,
            memory_peak=trainer.meter.highest,
            token_budget=trainer.token_budget,
            micro_batch_cap=trainer.micro_batch_cap,
            memory_shortages=trainer.memory_shortages,
            step_seconds=trainer.step_seconds,
            tokens_per_s=trainer.tokens_per_s,
            batch_tokens=trainer.batch_tokens,
            batch_adapters=trainer.batch_adapters,
            trained_tokens=trainer.work.tokens,
            padding_avoided=trainer.work.padding_avoided,
            generated_tokens=self.answering.generated_tokens,
            open_requests=self.answering.open_requests,
            tenants=tuple(trainer.reports()),
        )


def _first_budget(base: BaseModel, options: ActorOptions, room: int) -> int:
    """The token budget until something is measured.

    Args:
        base: The base model on its device.
        options: Of the actor.
        room: Bytes beside it.
    """
    description = base.description
    if base.device.type != "cpu":  # whose budget is the default, whatever it has room for
        half = base.dtype.itemsize == 2
        config = load_config(options.base_model, options.trust_remote_code)
        counted = count_in(base.dtype if half else torch.float32, config, trust_remote_code=options.trust_remote_code)
        description = replace(description, activations=counted and replace(counted, half=counted if half else None))
    return first_token_budget(
        description, base.device.type, room, base.dtype.itemsize, checkpointing=options.gradient_checkpointing
    )
