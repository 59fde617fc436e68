"""A merged model is PEFT's `merge_and_unload` to the last bit, and loads in transformers as it is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.model.base_model import BaseModel
from support.merging import merge, merged_by_peft, random_adapter
from support.tiny import tiny_model

KINDS = {
    "lora": {"r": 4, "lora_alpha": 10},
    "rslora": {"r": 3, "lora_alpha": 7.5, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
    "dora": {"r": 4, "lora_alpha": 10, "use_dora": True},
    "vera": {"peft_type": "VERA", "r": 32, "projection_prng_key": 3},
    "vera-by-key": {"peft_type": "VERA", "r": 32, "save_projection": False, "target_modules": ["q_proj", "up_proj"]},
    "pissa": {"r": 4, "init_lora_weights": "pissa"},
    "patterns": {"r": 4, "rank_pattern": {r"1\.mlp.*": 2}, "alpha_pattern": {"q_proj": 3}, "layers_to_transform": [1]},
}


@pytest.fixture(scope="module")
def base(tiny_base):
    return BaseModel.load(tiny_base)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_merged_as_peft_does_to_the_last_bit(base, tiny_base, tmp_path, kind):
    adapter = random_adapter(base, KINDS[kind], tmp_path / "adapter")
    out = merge(tiny_base, adapter, tmp_path / "merged")
    theirs, ours = merged_by_peft(tiny_base, adapter).state_dict(), load_file(out / "model.safetensors")
    assert ours.keys() <= theirs.keys()
    different = [name for name, tensor in ours.items() if not tensor.equal(theirs[name])]
    assert different == []
    unmerged = load_file(Path(tiny_base) / "model.safetensors")
    changed = {name for name, tensor in ours.items() if not tensor.equal(unmerged[name])}
    assert len(changed) == len(base.new_adapter(LoraConfig(**KINDS[kind])).plans)


@pytest.mark.parametrize(
    ("kind", "changes", "lora"),
    [
        ("llama", {"tie_word_embeddings": True}, {"r": 4}),
        ("gpt2", {}, {"r": 4}),  # Conv1D: the weight is kept as [in, out]
        ("gpt2", {}, {"r": 4, "use_dora": True}),
        ("phi3", {}, {"r": 4}),  # qkv and gate/up are one layer each
    ],
)
def test_tied_fused_and_transposed_layers_give_pefts_logits(tmp_path, kind, changes, lora):
    ref = str(tmp_path / "base")
    tiny_model(kind, **changes).save_pretrained(ref)
    adapter = random_adapter(BaseModel.load(ref), lora, tmp_path / "adapter")
    out = merge(ref, adapter, tmp_path / "merged")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(out)(ids).logits
        theirs = merged_by_peft(ref, adapter)(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(ref)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if not lora.get("use_dora") else 1e-6)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_shards_hold_the_same_tensors_and_the_rest_is_copied(base, tiny_base, tmp_path):
    adapter = random_adapter(base, KINDS["lora"], tmp_path / "adapter")
    whole = load_file(merge(tiny_base, adapter, tmp_path / "whole") / "model.safetensors")
    out = merge(tiny_base, adapter, tmp_path / "shards", shard_bytes=100_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert len(set(index["weight_map"].values())) > 2
    for file in set(index["weight_map"].values()):
        for name, tensor in load_file(out / file).items():
            assert tensor.equal(whole[name])
    again = merge(str(out), adapter, tmp_path / "again")  # a base in several files
    assert load_file(again / "model.safetensors").keys() == whole.keys()
    assert (out / "config.json").read_bytes() == (Path(tiny_base) / "config.json").read_bytes()
    assert (out / "README.md").read_text() == "# hello\n"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
