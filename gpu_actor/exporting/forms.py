"""The forms that a trained adapter can be given: which steps lead to each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gpu_actor.adapters.peft_config import lack_of_weights, read_peft_config
from gpu_actor.contract.errors import AdapterError, LorayError
from gpu_actor.exporting import llama_cpp
from gpu_actor.exporting.hub import check_token, push_adapter
from gpu_actor.exporting.model_card import model_card
from gpu_actor.exporting.model_folder import MergedModel, Progress, whole_folder
from gpu_actor.exporting.requests import Exported, ExportForm, ExportRequest
from gpu_actor.generation.saved_copies import on_this_machine
from gpu_actor.generation.saved_steps import saved_step
from gpu_actor.loading.config_files import load_config
from gpu_actor.loading.tokenizer import load_tokenizer

_MODELFILE = "FROM ./model.gguf\n"


def export(request: ExportRequest, progress: Progress) -> Exported:
    """Make the form that is asked for; it appears whole or not at all.

    Args:
        request: What is wanted.
        progress: Is told how far the weights are written.

    Raises:
        LorayError: It cannot be made; the message says why.
        OSError: It cannot be written.
    """
    return _Export(request, progress).make()


class _Export:
    def __init__(self, request: ExportRequest, progress: Progress) -> None:
        self._request, self._progress = request, progress
        self._target = Path(request.target)
        self._folder, wanted = on_this_machine(request.folder, request.step)
        self._adapter, step = saved_step(self._folder, wanted)
        self._which = "finished" if step is None else f"step {step}"

    def make(self) -> Exported:
        makers = {
            "merged": self._merged,
            "gguf": self._gguf,
            "gguf-lora": self._gguf_lora,
            "ollama": self._ollama,
            "push": self._push,
        }
        return makers[self._request.form]()

    def _merged(self) -> Exported:
        return self._write_merged(self._target)

    def _gguf(self) -> Exported:
        converter = llama_cpp.find_converter(llama_cpp.MODEL_CONVERTER, self._by_hand("merged"))
        _check_new_file(self._target)
        with _workplace(self._target) as work:
            return self._convert_model(converter, Path(work), self._target)

    def _ollama(self) -> Exported:
        converter = llama_cpp.find_converter(llama_cpp.MODEL_CONVERTER, self._by_hand("merged"))
        with whole_folder(self._target) as draft:
            with _workplace(self._target) as work:
                made = self._convert_model(converter, Path(work), draft / "model.gguf")
            (draft / "Modelfile").write_text(_MODELFILE, "utf-8")
            (draft / "README.md").write_text(self._card(merged=True), "utf-8")
        return Exported(str(self._target), made.which, made.weight_bytes, 0, made.layers)

    def _gguf_lora(self) -> Exported:
        converter = llama_cpp.find_converter(llama_cpp.ADAPTER_CONVERTER, self._by_hand("gguf-lora"))
        _check_new_file(self._target)
        lora = read_peft_config(self._adapter)
        if lora.peft_type != "LORA" or lora.use_dora:
            kind = "DoRA" if lora.use_dora else "VeRA"
            raise AdapterError(
                f"--gguf-lora: {self._request.name} is a {kind} adapter, and GGUF has LoRA's two matrices alone; "
                "give --gguf FILE, which writes the merged model"
            )
        with _workplace(self._target) as work:
            base = Path(work) / "base"
            load_config(self._request.base_model).save_pretrained(base)
            load_tokenizer(self._request.base_model).save_pretrained(base)
            arguments = llama_cpp.adapter_arguments(self._adapter, base)
            llama_cpp.convert(converter, arguments, Path(work) / "adapter.gguf", self._target)
        return Exported(str(self._target), self._which, self._target.stat().st_size, 0)

    def _push(self) -> Exported:
        check_token()
        read_peft_config(self._adapter)  # damaged files go nowhere
        if lack := lack_of_weights(self._adapter):
            raise AdapterError(f"{self._adapter}: {lack}")
        address = push_adapter(self._adapter, self._request.target, self._card(merged=False))
        size = sum(path.stat().st_size for path in self._adapter.glob("*.safetensors"))
        return Exported(address, self._which, size, 0)

    def _write_merged(self, folder: Path) -> Exported:
        asked = self._request
        template = asked.job.get("dataset", {}).get("chat_template")
        model = MergedModel(
            asked.base_model,
            self._adapter,
            chat_template=template,
            quantization=asked.quantization,
            allow_pickle=asked.allow_pickle,
        )
        model.write(folder, self._progress, {"README.md": self._card(merged=True)})
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return Exported(str(folder), self._which, size, 0, model.merge.layers)

    def _convert_model(self, converter: Path, work: Path, target: Path) -> Exported:
        made = self._write_merged(work / "merged")
        dtype = load_config(str(work / "merged")).dtype
        arguments = llama_cpp.model_arguments(work / "merged", str(dtype).removeprefix("torch."))
        llama_cpp.convert(converter, arguments, work / "model.gguf", target)
        return Exported(str(target), made.which, target.stat().st_size, 0, made.layers)

    def _card(self, *, merged: bool) -> str:
        asked = self._request
        return model_card(asked.name, asked.base_model, self._which, asked.job, Path(self._folder), merged=merged)

    def _by_hand(self, form: ExportForm) -> list[list[str]]:
        target = str(self._target / "model.gguf") if self._request.form == "ollama" else self._request.target
        if form == "gguf-lora":
            arguments = llama_cpp.adapter_arguments(self._adapter, Path(self._request.base_model))
            return [["python", llama_cpp.ADAPTER_CONVERTER, *arguments, "--outfile", target]]
        arguments = llama_cpp.model_arguments(Path("MERGED"), "auto")
        return [
            ["loray", "export", self._request.name, "--merged", "MERGED"],
            ["python", llama_cpp.MODEL_CONVERTER, *arguments, "--outfile", target],
        ]


def _check_new_file(target: Path) -> None:
    if target.exists():
        raise LorayError(f"{target} is there already; choose another file")
    target.parent.mkdir(parents=True, exist_ok=True)


def _workplace(target: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for what is made on the way, on the disk of the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f".{target.name}.{os.getpid()}.", suffix=".tmp", dir=target.parent)
