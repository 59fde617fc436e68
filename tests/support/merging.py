"""Adapters far from their start, merged by Loray and by PEFT."""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gpu_actor.adapters.peft_files import save_adapter
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.exporting.model_folder import MergedModel


def random_adapter(base, lora, folder):
    """An adapter whose values are far from their start, in PEFT's files."""
    weights = base.new_adapter(LoraConfig(**lora))
    weights.initialise(1)
    generator = torch.Generator().manual_seed(2)
    for tensors in weights.layers.values():
        for tensor in tensors:
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder, weights, base.ref)
    return folder


def merge(ref, adapter, out, shard_bytes=2**31, **options):
    MergedModel(ref, adapter, **options).write(out, lambda *_: None, {"README.md": "# hello\n"}, shard_bytes)
    return out


def merged_by_peft(ref, adapter, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(ref, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
