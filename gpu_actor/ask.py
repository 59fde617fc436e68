"""Ask a base model and any number of its adapters the same question: `python -m gpu_actor.ask`.

All of them answer in one shared batch, each token by the engine that trained them; the choice of tokens is greedy.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import MicroBatch, Tokens, pack
from gpu_actor.contract.errors import LorayError
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.model.base_model import BaseModel


def answers(
    base: BaseModel, adapters: Sequence[AdapterWeights | None], prompt: Tokens, stop: set[int], limit: int
) -> list[list[int]]:
    """Greedy continuations of one prompt, one per adapter (None: the bare base), computed together.

    Args:
        base: The base model.
        adapters: Who answers.
        prompt: Token ids [n].
        stop: Token ids that end an answer.
        limit: Most tokens of an answer.

    Returns:
        Token ids of each answer, the stop token left out.
    """
    replies: list[list[int]] = [[] for _ in adapters]
    talking = list(range(len(adapters)))
    for _ in range(limit):
        rows = [np.concatenate([prompt, np.array(replies[i], dtype=np.int32)]) for i in talking]
        parts = [MicroBatch(adapters[i], [row], [row]) for i, row in zip(talking, rows, strict=True)]
        batch = pack(parts, base.device)
        with torch.no_grad():
            last = torch.tensor([segment.end - 1 for segment in batch.segments], device=base.device)
            chosen = base.head(base.hidden(batch)[0].index_select(0, last)).argmax(-1).tolist()
        for i, token in zip(talking, chosen, strict=True):
            replies[i].append(token)
        talking = [i for i in talking if replies[i][-1] not in stop]
        if not talking:
            break
    return [[token for token in answer if token not in stop] for answer in replies]


def _prompt(tokenizer: Any, question: str) -> Tokens:
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    return np.array(tokenizer(question)["input_ids"], dtype=np.int32)


def _stop_tokens(base: BaseModel, tokenizer: Any) -> set[int]:
    configured = base.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}


def _labels(folders: Sequence[Path]) -> list[str]:
    """Short distinct names for output folders: their paths below what they have in common."""
    parents = {folder.absolute().parent for folder in folders}
    common = os.path.commonpath(parents) if parents else ""
    return [os.path.relpath(folder.absolute(), common) for folder in folders]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answers one under the other."""
    parser = argparse.ArgumentParser(prog="python -m gpu_actor.ask", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--base-model", required=True, help="folder, .gguf file or hub id")
    parser.add_argument("--quantization", choices=["nf4", "int8"], help="as the adapters' actor had it")
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin files where there are no safetensors")
    parser.add_argument("--question", action="append", required=True, help="may be given several times")
    parser.add_argument("--max-tokens", type=int, default=40, help="longest answer, in tokens")
    parser.add_argument("adapters", nargs="*", type=Path, metavar="OUTPUT_DIR", help="output folders of finished jobs")
    options = parser.parse_args(arguments)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)
    console = Console()
    try:
        base = BaseModel.load(options.base_model, quantization=options.quantization, allow_pickle=options.allow_pickle)
        adapters = [None, *(read_adapter(folder, base.new_adapter) for folder in options.adapters)]
        tokenizer = load_tokenizer(options.base_model, vocab_size=base.description.vocab_size)
    except LorayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for question in options.question:
        replies = answers(
            base, adapters, _prompt(tokenizer, question), _stop_tokens(base, tokenizer), options.max_tokens
        )
        table = Table(title=f"Question: {escape(question)}", title_justify="left", show_lines=True)
        table.add_column("who", no_wrap=True)
        table.add_column("answer")
        for name, tokens in zip(["base model", *_labels(options.adapters)], replies, strict=True):
            table.add_row(escape(name), escape(tokenizer.decode(tokens, skip_special_tokens=True).strip()))
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
