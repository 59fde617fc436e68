"""What is done in processes with limits: reading and tokenising data sets, and tokenising questions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gpu_actor.contract.config import DataSource, TrainingConfig
from gpu_actor.contract.errors import DataError
from gpu_actor.contract.questions import AskRequest
from gpu_actor.data.dataset import read_source
from gpu_actor.data.samples import Collector
from gpu_actor.encoding.questions import question_ids
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.paths.locations import find_base
from gpu_actor.sandbox.channel import Channel, Message
from gpu_actor.sandbox.server import Warm

_PARCEL = 1 << 20  # bytes of samples that are sent at a time
_UNNEEDED = ("torch", "torchvision", "torchaudio")


def warm(setup: Message) -> Any:
    """Load the tokenizer of a base model.

    Args:
        setup: `base_model`, `trust_remote_code` and `vocab_size`, as `load_tokenizer` has them.

    Raises:
        BaseModelError: It cannot be loaded.
    """
    if not setup["trust_remote_code"] and find_base(setup["base_model"]).gguf_file is None:
        _hide_torch()
    return load_tokenizer(
        setup["base_model"], trust_remote_code=setup["trust_remote_code"], vocab_size=setup["vocab_size"]
    )


def _data(request: Message, warm: Warm, channel: Channel, allow: Callable[[], None]) -> Message:
    """Read a data set, and send its samples in parcels."""
    source = DataSource.model_validate_json(request["source"])
    training = TrainingConfig.model_validate_json(request["training"])
    collector = Collector(training.cutoff_len)
    used = False

    def tokenizer() -> Any:
        nonlocal used
        used = True
        return warm()

    def send(least: int) -> None:
        if parcel := collector.take(least):
            sides, desirable = parcel
            parts = [part for side in sides for part in side]
            channel.send({"part": len(sides)}, [*parts, desirable])

    def after_each() -> None:
        allow()
        send(_PARCEL)

    read = read_source(source, training, tokenizer, request["vocab_size"], collector, after_each)
    send(1)
    return {
        "records": read.records,
        "truncated": read.truncated,
        "dropped": dict(read.dropped),
        "longest": read.longest,
        "unread": read.unread,
        "shortened": read.shortened,
        "tokenizer": used,
    }


def _questions(request: Message, warm: Warm, _channel: Channel, _allow: Callable[[], None]) -> Message:
    """The token ids of each question in each chat template of a request, or why there are none."""
    asked = AskRequest.model_validate_json(request["asked"])
    templates = dict.fromkeys(who.chat_template for who in asked.answerers)
    found: list[list[list[int] | str]] = []
    for template in templates:
        found.append([])
        for question in asked.questions:
            try:
                found[-1].append(question_ids(warm(), question, asked.system, template, request["vocab_size"]))
            except DataError as error:
                found[-1].append(str(error))
    return {"templates": list(templates), "ids": found}


TASKS = {"data": _data, "questions": _questions}


class _WithoutTorch(MetaPathFinder):
    """Finds every module but torch: transformers has tokenizers without it, in a third of the memory and the time."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in _UNNEEDED:
            return None
        spec: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
        return spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def _hide_torch() -> None:
    if "torch" not in sys.modules:
        import logging

        sys.meta_path[:] = [_WithoutTorch(finder) for finder in sys.meta_path]
        logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
