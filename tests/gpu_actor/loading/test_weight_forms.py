"""The forms in which base models come: safetensors in shards, GGUF, pickles on the operator's word; damaged ones."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.loading import load_model as load_model_file
from gpu_actor.loading.config_files import load_config
from gpu_actor.loading.load_model import load_model
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.describe import describe_base
from gpu_actor.paths.locations import BaseFiles, find_base
from support.gguf_files import write_gguf
from support.sample_tokenizers import byte_level_tokenizer
from support.tiny import VOCABULARY, tiny_model

IDS = torch.arange(3, 25)[None]


def logits_of(model):
    with torch.no_grad():
        return model(IDS).logits


def refusal(ref, **settings):
    with pytest.raises(BaseModelError) as caught:
        load_model(str(ref), **settings)
    return str(caught.value)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """Folder with one GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", tiny_model())
    return folder


def test_a_gguf_file_gives_the_model_that_was_written(gguf):
    expected = logits_of(tiny_model())
    for ref in (gguf, gguf / "tiny.gguf"):
        assert float((logits_of(load_model(str(ref))) - expected).abs().max()) < 1e-5


def test_a_gguf_file_is_described_hooked_and_quantised(gguf, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    description = describe_base(str(gguf))
    plain = describe_base(str(tmp_path))
    assert (description.linears, description.parameters) == (plain.linears, plain.parameters)
    assert BaseModel.load(str(gguf)).description == replace(description, activations=None)
    models = [load_model(str(place), quantization="nf4") for place in (gguf, tmp_path)]
    weights = [model.model.layers[0].mlp.up_proj.weight.data for model in models]
    assert torch.equal(*weights)


def test_the_tokenizer_comes_from_the_gguf_file_or_from_beside_it(gguf, tmp_path):
    tokenizer = load_tokenizer(str(gguf), vocab_size=VOCABULARY)
    assert tokenizer("tht", add_special_tokens=False)["input_ids"] == [5, 3]
    assert tokenizer.eos_token_id == 2
    write_gguf(tmp_path / "tiny.gguf", tiny_model())
    byte_level_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == byte_level_tokenizer().get_vocab()


def test_several_gguf_files_are_listed_and_one_can_be_named(gguf, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes((gguf / "tiny.gguf").read_bytes())
    assert "holds 2 GGUF files (a.gguf, b.gguf); name one of them" in refusal(tmp_path)
    assert load_model(str(tmp_path / "b.gguf")).config.hidden_size == 64
    assert "there is no such file" in refusal(tmp_path / "c.gguf")


def test_damaged_gguf_files_are_refused(gguf, tmp_path):
    whole = (gguf / "tiny.gguf").read_bytes()
    for content in (b"", b"GGUF", whole[:4000], whole[: len(whole) // 2]):
        (tmp_path / "x.gguf").write_bytes(content)
        assert "x.gguf" in refusal(tmp_path / "x.gguf")


def test_where_references_lead(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path))
    assert find_base("org/name") == BaseFiles("org/name")
    assert find_base("org/name/file.gguf") == BaseFiles("org/name", "file.gguf")
    kept = tmp_path / "models" / "org" / "name"
    kept.mkdir(parents=True)
    (kept / "file.gguf").write_bytes(b"GGUF")
    assert find_base("org/name") == find_base("org/name/file.gguf") == BaseFiles(str(kept), "file.gguf")
    (kept / "model.safetensors").write_bytes(b"")
    (kept / "config.json").write_text("{}")
    assert find_base("org/name") == BaseFiles(str(kept))


def test_sharded_safetensors(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(logits_of(load_model(str(tmp_path))), logits_of(tiny_model()))
    shards[1].write_bytes(shards[1].read_bytes()[:-10])
    assert f"{shards[1].name} is damaged or cut off" in refusal(tmp_path)
    shards[1].unlink()
    assert "cannot be loaded" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}'])
def test_a_corrupt_safetensors_file_is_named(tmp_path, content):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors is damaged or cut off" in refusal(tmp_path)


def test_tensors_that_the_weights_lack_are_no_random_numbers(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "lack 9 tensors that the configuration calls for" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    assert "cannot be loaded" in refusal(tmp_path)


def test_pickles_are_read_only_when_the_operator_allows_them(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "`allow_pickle: true` in the cluster file" in refusal(tmp_path)
    assert torch.equal(logits_of(load_model(str(tmp_path), allow_pickle=True)), logits_of(model))


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_even_allowed_pickles_run_no_code(tmp_path):
    tiny_model().config.save_pretrained(tmp_path)
    torch.save({"model.norm.weight": Exploit()}, tmp_path / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(tmp_path, allow_pickle=True)


def test_a_quantised_checkpoint_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert "quantised already (gptq)" in refusal(tmp_path)


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    AutoModelForCausalLM.from_config(tiny_model().config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="tokens, but the model only 128; the tokenizer belongs to another model"):
        load_tokenizer(str(tmp_path), vocab_size=VOCABULARY)


def test_half_of_an_encoder_decoder_is_not_loaded_as_if_it_were_a_model(tmp_path):
    """AutoModelForCausalLM would load BART's decoder alone."""
    from transformers import BartConfig

    BartConfig(vocab_size=128, d_model=32, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="a bart model has an encoder and a decoder"):
        load_config(str(tmp_path))


def test_on_a_gpu_weights_are_read_to_where_they_belong(tiny_base, monkeypatch):
    """By a map of one device, here a CPU's: the same model, and no hook of accelerate's around its layers."""
    assert load_model_file.placement("cuda:1") == {"device_map": {"": "cuda:1"}}
    assert load_model_file.placement("cpu") == {}
    plain = load_model(tiny_base)
    monkeypatch.setattr(load_model_file, "placement", lambda device: {"device_map": {"": device}})
    placed = load_model(tiny_base)
    assert not any(hasattr(module, "_hf_hook") for module in placed.modules())
    for (name, value), expected in zip(placed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(value, expected), name
    monkeypatch.setattr(load_model_file, "placement", lambda _: {"device_map": {"": "meta"}})
    with pytest.raises(NotImplementedError, match="meta tensor"):  # they were placed there, and cannot be had back
        load_model(tiny_base)
