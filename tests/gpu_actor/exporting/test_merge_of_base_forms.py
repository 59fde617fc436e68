"""Whatever form a base model is stored in, the merged one gives the logits of base and adapter."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpu_actor.contract.errors import AdapterError, BaseModelError, InvalidJobError, LorayError
from gpu_actor.exporting import model_folder
from gpu_actor.exporting.model_folder import MergedModel
from gpu_actor.exporting.tensor_names import names_in_model
from gpu_actor.loading.load_model import load_model
from gpu_actor.loading.quantization import dequantised
from gpu_actor.model.base_model import BaseModel
from support.chatglm import FIXTURE
from support.gguf_files import write_gguf
from support.merging import merge, merged_by_peft, random_adapter
from support.talking import save_talking_base
from support.tiny import tiny_model

IDS = torch.arange(3, 40)[None]
LORA = {"r": 4, "lora_alpha": 10}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def merged_logits(out, **settings):
    return logits(AutoModelForCausalLM.from_pretrained(out, **settings))


def with_adapter(ref, adapter, **settings):
    """The logits of a base as Loray loads it, with the adapter beside it as PEFT runs it."""
    return logits(PeftModel.from_pretrained(load_model(ref, **settings), adapter))


@pytest.fixture(scope="module")
def base(tiny_base):
    return BaseModel.load(tiny_base)


def test_a_gguf_base(base, tmp_path):
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", tiny_model())
    ref = str(tmp_path / "gguf" / "tiny.gguf")
    adapter = random_adapter(base, LORA, tmp_path / "adapter")
    out = merge(ref, adapter, tmp_path / "merged")
    torch.testing.assert_close(merged_logits(out), with_adapter(ref, adapter), rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(out)("th").input_ids == [5]


def test_an_original_chatglm_base_becomes_glm(tmp_path):
    ref = str(FIXTURE)
    adapter = random_adapter(BaseModel.load(ref), LORA, tmp_path / "adapter")
    out = merge(ref, adapter, tmp_path / "merged")
    torch.testing.assert_close(merged_logits(out), with_adapter(ref, adapter), rtol=1e-5, atol=1e-5)


def test_a_pickled_base_on_the_operators_word(base, tiny_base, tmp_path):
    ref = tmp_path / "pickled"
    ref.mkdir()
    shutil.copy(Path(tiny_base) / "config.json", ref)
    torch.save(load_file(Path(tiny_base) / "model.safetensors"), ref / "pytorch_model.bin")
    adapter = random_adapter(base, LORA, tmp_path / "adapter")
    with pytest.raises(BaseModelError, match="pickled weights only"):
        merge(str(ref), adapter, tmp_path / "merged")
    out = merge(str(ref), adapter, tmp_path / "merged", allow_pickle=True)
    torch.testing.assert_close(merged_logits(out), with_adapter(tiny_base, adapter), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_base_keeps_its_dtype_and_is_rounded_once(base, tmp_path):
    ref = str(tmp_path / "half")
    tiny_model(dtype=torch.bfloat16).save_pretrained(ref)
    adapter = random_adapter(base, LORA, tmp_path / "adapter")
    ours = load_file(merge(ref, adapter, tmp_path / "merged") / "model.safetensors")
    exact = merged_by_peft(ref, adapter).state_dict()  # the bf16 weights in fp32
    assert all(tensor.equal(exact[name].to(torch.bfloat16)) for name, tensor in ours.items())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_what_was_trained_on_a_quantised_base_is_merged_into_its_rounded_weights(
    base, tiny_base, tmp_path, quantization
):
    adapter = random_adapter(base, LORA, tmp_path / "adapter")
    out = merge(tiny_base, adapter, tmp_path / "rounded", quantization=quantization)
    trained = load_model(tiny_base, quantization=quantization)
    tensors = load_file(out / "model.safetensors")
    delta = merged_by_peft(tiny_base, adapter).state_dict()
    name = "model.layers.1.mlp.up_proj"
    plain = load_file(Path(tiny_base) / "model.safetensors")[f"{name}.weight"]
    expected = dequantised(trained.get_submodule(name), torch.float32) + (delta[f"{name}.weight"] - plain)
    torch.testing.assert_close(tensors[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(tensors[f"{name}.weight"], delta[f"{name}.weight"], atol=1e-4)
    if quantization == "nf4":  # bitsandbytes' own int8 product would quantise the inputs as well
        theirs = with_adapter(tiny_base, adapter, quantization=quantization)
        torch.testing.assert_close(merged_logits(out), theirs, rtol=1e-4, atol=1e-4)


def test_the_names_of_old_checkpoints_are_found_as_transformers_finds_them(base, tiny_base, tmp_path):
    """A checkpoint of the body alone has no prefix; layers that are stored in parts are not taken for whole ones."""
    ref = tmp_path / "body"
    ref.mkdir()
    shutil.copy(Path(tiny_base) / "config.json", ref)
    tensors = load_file(Path(tiny_base) / "model.safetensors")
    stored = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(stored, ref / "model.safetensors", {"format": "pt"})
    adapter = random_adapter(base, LORA, tmp_path / "adapter")
    out = merge(str(ref), adapter, tmp_path / "merged")
    assert load_file(out / "model.safetensors").keys() == stored.keys()
    torch.testing.assert_close(merged_logits(out), with_adapter(tiny_base, adapter), rtol=1e-5, atol=1e-5)
    moe = tiny_model("mixtral", num_local_experts=2)
    moe.save_pretrained(tmp_path / "moe")
    written = load_file(tmp_path / "moe" / "model.safetensors")
    named = names_in_model(moe, written)
    assert "model.layers.0.self_attn.q_proj.weight" in named.values()
    assert not [name for name in named if ".experts." in name]


def test_the_jobs_own_template_goes_with_the_model(tmp_path):
    ref = save_talking_base(tmp_path / "talking")
    adapter = random_adapter(BaseModel.load(ref), LORA, tmp_path / "adapter")
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}!")
    plain = AutoTokenizer.from_pretrained(merge(ref, adapter, tmp_path / "plain"))
    assert plain.chat_template == AutoTokenizer.from_pretrained(ref).chat_template
    for place, template in (("text", "{{ messages[0]['content'] }}!"), ("path", str(tmp_path / "own.jinja"))):
        out = merge(ref, adapter, tmp_path / place, chat_template=template)
        assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages[0]['content'] }}!"


def test_what_cannot_be_written_leaves_nothing_behind(base, tiny_base, tmp_path, monkeypatch):
    adapter = random_adapter(base, LORA, tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(LorayError, match="is not an empty folder; choose another one"):
        merge(tiny_base, adapter, tmp_path / "full")
    with pytest.raises(InvalidJobError, match="'gate_up_proj' matches no linear layer of the base model"):
        MergedModel(tiny_base, random_adapter(BaseModel.load(str(FIXTURE)), LORA, tmp_path / "other"))
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("inf")}, path)
    (adapter / "checksums.json").unlink()
    with pytest.raises(AdapterError, match=r"down_proj\.weight: the merged weight is not finite in float32"):
        merge(tiny_base, adapter, tmp_path / "broken")
    monkeypatch.setattr(model_folder, "_SPARE_BYTES", 2**60)
    with pytest.raises(LorayError, match="GiB free; make room, or choose another folder"):
        merge(tiny_base, adapter, tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "full", "other"]
