"""The process that answers where no actor hosts the base model: `python -m gpu_actor.ask`, started by `loray ask`.

It reads one request (`AskRequest` as JSON) from standard input, and writes the state of all answers as a line of JSON
a few times a second, until they are made.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial

import torch

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.questions import AskRequest
from gpu_actor.generation.desk import AnswerDesk
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.model.base_model import BaseModel

_LINE_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one request."""
    parser = argparse.ArgumentParser(prog="python -m gpu_actor.ask", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quantization", choices=["nf4", "int8"], help="as the adapters' actor had it")
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin files where there are no safetensors")
    options = parser.parse_args(arguments)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)
    request = AskRequest.model_validate(json.load(sys.stdin), strict=False)  # JSON has no tuples
    ref = request.base_model
    try:
        base = BaseModel.load(ref, quantization=options.quantization, allow_pickle=options.allow_pickle)
    except LorayError as error:
        print(error, file=sys.stderr)
        return 2
    desk = AnswerDesk(base, cache(partial(load_tokenizer, ref, vocab_size=base.description.vocab_size)))
    desk.open(request, lambda _: None)
    written = 0.0
    while not desk.idle:
        desk.step()
        if time.monotonic() - written > _LINE_SECONDS:
            written = time.monotonic()
            _write(desk, request)
    _write(desk, request)
    return 0


def _write(desk: AnswerDesk, request: AskRequest) -> None:
    print(json.dumps([asdict(answer) for answer in desk.answers(request.request_id) or ()]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
