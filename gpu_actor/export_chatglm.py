"""Writes a ChatGLM2/3 checkpoint as a plain Glm model, which transformers and PEFT load by themselves.

python -m gpu_actor.export_chatglm FOLDER OUT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import GlmForCausalLM

from gpu_actor.contract.errors import BaseModelError, LorayError
from gpu_actor.loading.chatglm import glm_tensors, is_chatglm
from gpu_actor.loading.config_files import load_config, read_config
from gpu_actor.loading.load_model import check_whole, model_from_tensors
from gpu_actor.loading.tokenizer import has_tokenizer, load_tokenizer
from gpu_actor.loading.weight_files import tensors_of
from gpu_actor.paths.locations import find_base


def main(arguments: list[str] | None = None) -> int:
    """Write the mapped model and its tokenizer into a new folder."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_actor.export_chatglm",
        description="Write a ChatGLM2/3 checkpoint as a plain Glm model, which transformers and PEFT load.",
    )
    parser.add_argument("source", metavar="FOLDER", help="folder or hub id of the original checkpoint")
    parser.add_argument("target", metavar="OUT", type=Path, help="a new or empty folder")
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin files where there are no safetensors")
    options = parser.parse_args(arguments)
    try:
        export_chatglm(options.source, options.target, allow_pickle=options.allow_pickle)
    except LorayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.target} is a Glm model now; transformers and PEFT load it by itself")
    return 0


def export_chatglm(ref: str, target: Path, *, allow_pickle: bool = False) -> None:
    """Write an original ChatGLM checkpoint as a Glm model with its tokenizer, in the dtype that it is stored in.

    Raises:
        BaseModelError: It is no ChatGLM checkpoint, cannot be read, or the target is not empty.
    """
    files, raw = find_base(ref), read_config(ref)
    if not is_chatglm(raw):
        raise BaseModelError(f"{ref} has the model_type {raw.get('model_type')!r}; allowed: 'chatglm'")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BaseModelError(f"{target} exists and is not an empty folder; choose another one")
    state = glm_tensors(raw, tensors_of(files, allow_pickle), ref)
    dtype = next(iter(state.values())).dtype
    model, notes = model_from_tensors(GlmForCausalLM, load_config(ref), state, {"dtype": dtype})
    check_whole(ref, notes)
    model.save_pretrained(target)
    if has_tokenizer(ref):
        load_tokenizer(ref).save_pretrained(target)


if __name__ == "__main__":
    sys.exit(main())
