"""The folder of a merged model: weights, configuration, tokenizer; it appears whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gpu_actor.contract.config import Quantization, is_template_path
from gpu_actor.contract.errors import BaseModelError, LorayError
from gpu_actor.contract.messages import one_line
from gpu_actor.exporting.merge import Merge
from gpu_actor.exporting.shards import SHARD_BYTES, ShardWriter
from gpu_actor.exporting.tensor_names import names_in_model
from gpu_actor.loading.chatglm import is_chatglm
from gpu_actor.loading.config_files import load_config, read_config
from gpu_actor.loading.load_model import load_model
from gpu_actor.loading.model_class import model_without_weights
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.loading.weight_files import local_folder, safetensors_shards, tensors_in, tensors_of
from gpu_actor.paths.locations import BaseFiles, find_base, pickles_in

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Is told the bytes that are written, and those there are."""
_SPARE_BYTES = 64 * 2**20  # beside the weights: tokenizer, configuration
_COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")
_LEFT_BEHIND = ("*.index.json", "README*", "LICENSE*", "adapter_config.json", "checksums.json")
_GIB = 2**30


class MergedModel:
    """A base model with an adapter merged into it, ready to be written."""

    def __init__(
        self,
        ref: str,
        adapter: Path,
        *,
        chat_template: str | None = None,
        quantization: Quantization | None = None,
        allow_pickle: bool = False,
    ) -> None:
        """Read names and shapes of the base, and the adapter.

        Args:
            ref: How the job names its base model.
            adapter: The folder of the adapter's files.
            chat_template: The job's own template, or the path of a .jinja file; None: the base model's.
            quantization: Merge into the layers' weights as they were rounded for the training; None: as stored.
            allow_pickle: Read pickled weights where there are no safetensors.

        Raises:
            LorayError: The base or the adapter cannot be read, or they do not belong together.
        """
        self._ref, self._allow_pickle = ref, allow_pickle
        self._template = chat_template
        self._files = find_base(ref)
        config = load_config(ref)
        skeleton = model_without_weights(ref, config)
        quantised = None
        if quantization is not None:
            quantised = load_model(ref, quantization=quantization, allow_pickle=allow_pickle)
        self.merge = Merge(ref, skeleton, adapter, quantised)
        self._shards = self._one_to_one(skeleton)

    def write(
        self, target: Path, progress: Progress, extra_files: dict[str, str], shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Write the model; the folder appears when all of it is on the disk.

        Args:
            target: A folder that is not there yet, or an empty one.
            progress: Is told how far it is.
            extra_files: Further text files by name, such as a README.md.
            shard_bytes: Most bytes of one file of weights.

        Raises:
            LorayError: The target is not empty, or the disk has not enough room.
            OSError: It cannot be written; nothing is left behind then.
        """
        with whole_folder(target) as draft:
            if self._shards is not None:
                self._stream(draft, self._shards, progress, shard_bytes)
            else:
                self._load_and_write(draft, progress, shard_bytes)
            self._write_template(draft)
            for name, text in extra_files.items():
                (draft / name).write_text(text, "utf-8")

    def _one_to_one(self, skeleton: Any) -> dict[Path, dict[str, str]] | None:
        """By file, what its tensors are called in the model; None where the files are not the model's own tensors.

        Then the model has to be loaded whole: out of GGUF and pickles, of ChatGLM's original form, and where a layer's
        weight is put together from several tensors.
        """
        if self._files.gguf_file is not None or is_chatglm(read_config(self._ref)):
            return None
        shards = safetensors_shards(local_folder(self._files, self._allow_pickle))
        named = {}
        for path in shards:
            with safe_open(path, framework="pt") as file:
                named[path] = names_in_model(skeleton, file.keys())
        found = {name for names in named.values() for name in names.values()}
        return named if self.merge.names <= found else None

    def _stream(self, draft: Path, shards: dict[Path, dict[str, str]], progress: Progress, shard_bytes: int) -> None:
        """Copy the base's files tensor by tensor; only the weights that the adapter changes are touched."""
        total = sum(path.stat().st_size for path in shards)
        check_room(draft, total)
        writer = ShardWriter(draft, shard_bytes)
        for path, names in shards.items():
            for name, tensor in tensors_in(path):
                writer.add(name, self.merge(names[name], tensor) if name in names else tensor)
                progress(writer.written_bytes, total)
        writer.close()
        progress(total, total)
        for path in companions(next(iter(shards)).parent):
            shutil.copyfile(path, draft / path.name)

    def _load_and_write(self, draft: Path, progress: Progress, shard_bytes: int) -> None:
        """Load the model, merge in place, and let transformers write it in its own form."""
        dtype = stored_dtype(self._files, self._allow_pickle)
        model = load_model(self._ref, dtype=str(dtype).removeprefix("torch."), allow_pickle=self._allow_pickle)
        total = sum(parameter.nbytes for parameter in model.parameters())
        check_room(draft, total)
        for name, parameter in model.named_parameters():
            parameter.data = self.merge(name, parameter.data)
        progress(0, total)
        model.save_pretrained(draft, max_shard_size=shard_bytes)
        progress(total, total)
        try:
            load_tokenizer(self._ref).save_pretrained(draft)
        except BaseModelError as error:  # a base that is trained on token ids has none
            logger.warning("no tokenizer is written: %s", one_line(error))

    def _write_template(self, draft: Path) -> None:
        """The template that the job was trained with takes the place of the base model's."""
        if self._template is None:
            return
        text = self._template
        if is_template_path(text):
            try:
                text = Path(text).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise LorayError(f"dataset.chat_template: {self._template} cannot be read ({error})") from None
        (draft / "chat_template.jinja").write_text(text, "utf-8")


def stored_dtype(files: BaseFiles, allow_pickle: bool) -> torch.dtype:
    """The number format that a base model is stored in; of a quantised GGUF file float16, which it was made from.

    Raises:
        BaseModelError: It has no weights.
    """
    if files.gguf_file is None:
        return next((tensor.dtype for _, tensor in tensors_of(files, allow_pickle)), torch.float32)
    from gguf import GGMLQuantizationType, GGUFReader
    from transformers.utils import cached_file

    path = cached_file(files.place, files.gguf_file)
    types = {tensor.tensor_type for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1}
    if types == {GGMLQuantizationType.F32}:
        return torch.float32
    return torch.bfloat16 if GGMLQuantizationType.BF16 in types else torch.float16


def companions(folder: Path) -> list[Path]:
    """What lies beside the weights of a base model and belongs to it: configuration, tokenizer, template."""
    found = {path for pattern in _COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    left = {path for pattern in _LEFT_BEHIND for path in folder.glob(pattern)} | {*pickles_in(folder)}
    return sorted(found - left)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A draft that becomes `target` when the block ends, and is removed where it fails.

    Raises:
        LorayError: The target is there and not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LorayError(f"{target} exists and is not an empty folder; choose another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in draft.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_room(folder: Path, wanted: int) -> None:
    """Check that a disk has room before anything is written.

    Raises:
        LorayError: It has not.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted + _SPARE_BYTES:
        raise LorayError(
            f"{folder.parent}: the model takes {wanted / _GIB:.1f} GiB and the disk has {free / _GIB:.1f} GiB free; "
            "make room, or choose another folder"
        )
