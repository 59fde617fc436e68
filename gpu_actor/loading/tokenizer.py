"""The tokenizer of a base model, whatever form the model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line
from gpu_actor.loading.chatglm import generation, is_chatglm
from gpu_actor.loading.config_files import read_config
from gpu_actor.paths.locations import BaseFiles, find_base

_FAST_TOKENIZER = "tokenizer.json"


def load_tokenizer(ref: str, *, trust_remote_code: bool = False, vocab_size: int | None = None) -> Any:
    """The transformers tokenizer of a base model.

    A tokenizer.json beside the weights is used first; else GGUF files and original ChatGLM checkpoints carry theirs
    in forms of their own.

    Args:
        ref: Folder, .gguf file or hub id.
        trust_remote_code: Let the tokenizer's own Python code run.
        vocab_size: Rows of the base model's embedding; None checks nothing.

    Raises:
        BaseModelError: There is none, it cannot be read, or it has more tokens than the model.
    """
    from transformers import AutoTokenizer

    files = find_base(ref)
    has_fast = _local_file(files, _FAST_TOKENIZER) is not None
    try:
        if files.gguf_file is not None and not has_fast:
            tokenizer = AutoTokenizer.from_pretrained(files.place, gguf_file=files.gguf_file)
        elif files.gguf_file is None and not has_fast and is_chatglm(raw := read_config(ref)):
            from gpu_actor.loading.chatglm_tokenizer import chatglm_tokenizer

            model = _local_file(files, "tokenizer.model")
            if model is None:
                raise FileNotFoundError("tokenizer.model is missing")
            _local_file(files, "tokenizer_config.json")  # fetched into the same folder
            tokenizer = chatglm_tokenizer(Path(model).parent, generation(raw, ref))
        else:
            tokenizer = AutoTokenizer.from_pretrained(files.place, trust_remote_code=trust_remote_code)
    except (BaseModelError, MemoryError):
        raise
    except Exception as error:
        raise BaseModelError(
            f"base_model: {ref}: its tokenizer cannot be read ({one_line(error)}); put the tokenizer's files beside "
            "the weights, or give the samples in the format tokens"
        ) from None
    # added tokens may lie beyond the embedding as long as no sample has them, which is checked sample by sample
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise BaseModelError(
            f"base_model: {ref}: its tokenizer has {tokenizer.vocab_size} tokens, but the model only {vocab_size}; "
            "the tokenizer belongs to another model"
        )
    return tokenizer


def has_tokenizer(ref: str) -> bool:
    """Whether a folder or hub id holds a tokenizer that an original ChatGLM checkpoint can have."""
    files = find_base(ref)
    return any(_local_file(files, name) is not None for name in (_FAST_TOKENIZER, "tokenizer.model"))


def _local_file(files: BaseFiles, name: str) -> str | None:
    """The path of a file of a base model, fetched from the hub if need be; None if it has no such file."""
    from transformers.utils import cached_file

    path: str | None = cached_file(
        files.place,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return path
