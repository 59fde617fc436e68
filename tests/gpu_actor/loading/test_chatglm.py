# ruff: noqa: RUF001
"""ChatGLM2/3 checkpoints in original form: the reference logits of the original code, and its token ids."""

import json
import random
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpu_actor.adapters.peft_files import load_adapter
from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.data.records import IGNORE_INDEX, Chat
from gpu_actor.data.tokenize import TextEncoder
from gpu_actor.export_chatglm import main
from gpu_actor.loading.chatglm import glm_config
from gpu_actor.loading.load_model import load_model
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.describe import describe_base
from support.chatglm import FIXTURE, fixture_config, train_sentencepiece, without_groups, write_checkpoint
from support.engine import make_spec, make_tenant, micro_batch, run_all
from support.oracle import adapter_tensors
from support.tiny import token_rows

REFERENCE = load_file(FIXTURE / "reference.safetensors")


def logits_of(model):
    with torch.no_grad():
        return model(REFERENCE["input_ids"]).logits


def refusal(folder):
    with pytest.raises(BaseModelError) as caught:
        load_model(str(folder))
    return str(caught.value)


def test_the_mapping_gives_the_logits_of_the_original_code():
    found = logits_of(load_model(str(FIXTURE)))
    assert float((found - REFERENCE["logits"]).abs().max()) <= 1e-6  # 0.0 where it was written
    assert float((logits_of(load_model(str(FIXTURE), dtype="float64")) - REFERENCE["logits"]).abs().max()) < 5e-5


def test_the_engine_gives_them_too_packed():
    base = BaseModel.load(str(FIXTURE))
    ids = [row.numpy().astype("int32") for row in REFERENCE["input_ids"]]
    packed = base.logits(pack([MicroBatch(None, ids, ids)], base.device)).view_as(REFERENCE["logits"])
    assert float((packed - REFERENCE["logits"]).abs().max()) < 2e-5


def test_heads_without_groups_are_stored_head_by_head(tmp_path):
    config, tensors = without_groups(fixture_config(), load_file(FIXTURE / "model.safetensors"))
    model = load_model(str(write_checkpoint(tmp_path, config, tensors)))
    assert model.config.num_key_value_heads == 4
    assert float((logits_of(model) - REFERENCE["logits"]).abs().max()) < 2e-5


def test_a_checkpoint_without_qkv_bias(tmp_path):
    tensors = load_file(FIXTURE / "model.safetensors")
    zeroed = {name: t * 0 if name.endswith("query_key_value.bias") else t for name, t in tensors.items()}
    bare = {name: t for name, t in tensors.items() if not name.endswith("query_key_value.bias")}
    zero = load_model(str(write_checkpoint(tmp_path / "zero", tensors=zeroed)))
    none = load_model(str(write_checkpoint(tmp_path / "none", {**fixture_config(), "add_qkv_bias": False}, bare)))
    assert none.model.layers[0].self_attn.q_proj.bias is None
    assert torch.equal(logits_of(none), logits_of(zero))


def test_shards_and_pickles_give_the_same_model(tmp_path):
    tensors = load_file(FIXTURE / "model.safetensors")
    names = sorted(tensors)
    halves = {"one": {n: tensors[n] for n in names[::2]}, "two": {n: tensors[n] for n in names[1::2]}}
    weight_map = {n: f"{half}.safetensors" for half, part in halves.items() for n in part}
    sharded = write_checkpoint(tmp_path / "sharded", tensors=halves["one"], name="one.safetensors")
    save_file(halves["two"], sharded / "two.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits_of(load_model(str(sharded))), logits_of(load_model(str(FIXTURE))))

    pickled = write_checkpoint(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    for half, part in halves.items():
        torch.save(part, pickled / f"{half}.bin")
    assert "pickled weights only" in refusal(pickled)
    allowed = load_model(str(pickled), allow_pickle=True)
    assert torch.equal(logits_of(allowed), logits_of(load_model(str(FIXTURE))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"post_layer_norm": False}, "post_layer_norm is False"),
        ({"rmsnorm": False}, "rmsnorm is False"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"pre_seq_len": 128}, "transformer.prefix_encoder"),
        ({"quantization_bit": 4}, "quantised already"),
        ({"num_layers": None}, "num_layers is None"),
        ({"multi_query_group_num": "two"}, "multi_query_group_num is 'two'; it must be a whole number above 0"),
        ({"kv_channels": 0}, "kv_channels is 0; it must be a whole number above 0"),
        ({"inner_hidden_size": 16384}, "first-generation"),
        ({"num_layers": 4}, "lack 11 tensors"),
        ({"multi_query_group_num": 4}, "query_key_value.bias has 128 rows where config.json makes them 192"),
    ],
)
def test_what_glm_cannot_do_is_refused_by_name(tmp_path, change, words):
    assert words in refusal(write_checkpoint(tmp_path, {**fixture_config(), **change}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer.prefix_encoder.embedding.weight", "P-tuning prefix"),
        ("transformer.encoder.layers.0.mlp.dense_4h_to_h.weight_scale", "quantised already"),
        ("transformer.encoder.layers.0.mlp.extra.weight", "the tensor transformer.encoder.layers.0.mlp.extra.weight"),
    ],
)
def test_unknown_tensors_are_refused_by_name(tmp_path, name, words):
    tensors = {**load_file(FIXTURE / "model.safetensors"), name: torch.zeros(2)}
    assert words in refusal(write_checkpoint(tmp_path, tensors=tensors))


def test_rope_ratio_stretches_chatglm2_and_raises_the_base_of_the_others():
    def rope(name):
        return glm_config({**fixture_config(), "rope_ratio": 50, "_name_or_path": name}, "x").rope_parameters

    assert (rope("THUDM/chatglm3-6b-32k")["rope_theta"], rope("THUDM/glm-4-9b-chat")["rope_theta"]) == (5e5, 5e5)
    interpolated = rope("THUDM/chatglm2-6b-32k")
    assert (interpolated["rope_type"], interpolated["factor"], interpolated["rope_theta"]) == ("linear", 50, 1e4)
    with pytest.raises(BaseModelError, match="rope_ratio 50 means one thing in ChatGLM2"):
        rope("mine")


def test_interpolated_positions_are_divided(tmp_path):
    config = {**fixture_config(), "rope_ratio": 4, "_name_or_path": "THUDM/chatglm2-6b-32k"}
    model = load_model(str(write_checkpoint(tmp_path, config)))
    positions = torch.arange(23)[None].expand(2, -1)
    with torch.no_grad():
        stretched = model(REFERENCE["input_ids"], position_ids=4 * positions).logits
    assert float((stretched - REFERENCE["logits"]).abs().max()) < 2e-5


def test_an_adapter_loads_with_peft_on_the_written_model(tmp_path, capsys):
    train_sentencepiece(write_checkpoint(tmp_path / "original"))
    assert main([str(tmp_path / "original"), str(tmp_path / "glm")]) == 0
    assert main([str(tmp_path / "original"), str(tmp_path / "glm")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    base = BaseModel.load(str(tmp_path / "original"))
    training = {"max_steps": 4, "learning_rate": 0.01}
    tenant = make_tenant(base, make_spec(tmp_path, "j", token_rows(8), {"r": 4}, training))
    run_all(base, [tenant])
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "glm")
    assert torch.equal(logits_of(stock), logits_of(load_model(str(FIXTURE))))
    theirs = PeftModel.from_pretrained(stock, tenant.output_dir)
    weights = base.new_adapter(tenant.spec.lora)
    load_adapter(tenant.output_dir, weights)
    assert adapter_tensors(weights).keys() == adapter_tensors(tenant.weights).keys()
    part = micro_batch(weights, [11])
    ours = base.logits(pack([part], base.device))
    with torch.no_grad():
        expected = theirs(torch.tensor(part.sequences[0].astype("int64"))[None]).logits[0]
    assert float((ours - expected).abs().max()) < 2e-5
    text = "philosophy 你好\n"
    written, original = AutoTokenizer.from_pretrained(tmp_path / "glm"), load_tokenizer(str(tmp_path / "original"))
    assert written(text).input_ids == original(text).input_ids


def test_it_is_described_without_its_weights(tmp_path):
    (tmp_path / "config.json").write_text((FIXTURE / "config.json").read_text())
    description = describe_base(str(tmp_path))
    assert replace(description, ref=str(FIXTURE), activations=None) == BaseModel.load(str(FIXTURE)).description
    assert description.parameters == 120000
    assert description.linears[0].name == "model.layers.0.self_attn.q_proj"


# -- the tokenizer ---------------------------------------------------------------------------------------------------

NASTY = [
    *["", " ", "  ", "\n", "\n\n  \n", " leading", "trailing  ", "   a   b   ", "tab\there", "\r\nwin", "\ufeffbom"],
    *["你好", "你好 世界", "日本語テキスト", "\u3000全角空格", "Ａ１ ﬁ", "🦜🔗 émoji 👩\u200d👩\u200d👧", "naïve café"],
    *["12345 67", "a\u2581b", "philosophy eop sop [mask]", "\u200b\x00x", "def f():\n    return 1\n\n\n", "x" * 50],
]
ALPHABET = "ab 你好\n🦜12.的  \u2581é"


def texts():
    dice = random.Random(0)
    return NASTY + ["".join(dice.choice(ALPHABET) for _ in range(dice.randrange(1, 25))) for _ in range(200)]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(("rule", "extra_blanks"), [("identity", True), ("nmt_nfkc", False)])
def test_ids_are_those_of_sentencepiece(tmp_path, model_type, rule, extra_blanks):
    own = train_sentencepiece(write_checkpoint(tmp_path / "chatglm3"), model_type, rule, extra_blanks)
    tokenizer = load_tokenizer(str(tmp_path / "chatglm3"))
    first = own.vocab_size()
    for text in texts():
        expected = own.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, text
        assert tokenizer(text)["input_ids"] == [first + 1, first + 3, *expected], text


def test_chatglm3_conversations_have_the_ids_of_build_chat_input(tmp_path):
    own = train_sentencepiece(write_checkpoint(tmp_path / "chatglm3"))
    tokenizer = load_tokenizer(str(tmp_path / "chatglm3"))
    first = own.vocab_size()
    roles = {role: first + 5 + i for i, role in enumerate(("system", "user", "assistant", "observation"))}

    def single(role, metadata, content):
        return [roles[role], *own.encode(f"{metadata}\n"), *own.encode(content)]

    for text in texts():
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": text},
            {"role": "assistant", "content": text, "metadata": "weather"},
            {"role": "tool", "content": text},
        ]
        expected = [first + 1, first + 3, *single("system", "", text), *single("user", "", text)]
        expected += [*single("assistant", "weather", text), *single("observation", "", text), roles["assistant"]]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == expected, text
    with pytest.raises(Exception, match="no role poet"):
        tokenizer.apply_chat_template([{"role": "poet", "content": "x"}], tokenize=False)


def test_chatglm2_conversations_have_the_ids_of_build_prompt(tmp_path):
    own = train_sentencepiece(write_checkpoint(tmp_path / "chatglm2"))
    tokenizer = load_tokenizer(str(tmp_path / "chatglm2"))
    prefix = [own.vocab_size() + 1, own.vocab_size() + 3]
    for text in [text for text in texts() if text]:
        prompt = f"[Round 1]\n\n问：{text}\n\n答：{text}\n\n[Round 2]\n\n问：again\n\n答："
        messages = [{"role": r, "content": c} for r, c in (("user", text), ("assistant", text), ("user", "again"))]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == prefix + own.encode(prompt), text
        answered = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], tokenize=False)
        # the training script of the original: prompt and answer encoded apart, one after the other
        found = tokenizer(answered, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(found) == tokenizer.decode(prefix + own.encode(prompt) + own.encode(text)), text


def test_the_answer_and_its_end_are_learned(tmp_path):
    own = train_sentencepiece(write_checkpoint(tmp_path / "chatglm3"))
    encoder = TextEncoder(load_tokenizer(str(tmp_path / "chatglm3")), train_on_inputs=False)
    messages = ({"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hello there"})
    ids, labels = encoder.encode(Chat(messages, learned=(1,)))
    answer = [*own.encode("\n"), *own.encode("Hello there"), own.eos_id()]
    assert ids[-len(answer) :].tolist() == answer
    assert labels[labels != IGNORE_INDEX].tolist() == answer


def test_a_file_of_another_kind_is_refused_in_words(tmp_path):
    folder = write_checkpoint(tmp_path / "glm4")
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken, as GLM-4 has it
    with pytest.raises(BaseModelError, match="no sentencepiece model"):
        load_tokenizer(str(folder))
    (folder / "tokenizer.model").unlink()
    with pytest.raises(BaseModelError, match="tokenizer cannot be read"):
        load_tokenizer(str(folder))


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    train_sentencepiece(write_checkpoint(tmp_path / "chatglm3"))
    with pytest.raises(BaseModelError, match="tokens, but the model only 211; the tokenizer belongs to another model"):
        load_tokenizer(str(tmp_path / "chatglm3"), vocab_size=211)
