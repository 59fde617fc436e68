"""How a base is served: what packed attention refuses, lengths that steer rotary scaling, refusals in words."""

import pytest
import torch

from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.model.attention import packed_attention
from gpu_actor.model.base_model import BaseModel
from gpu_actor.operators.multi_adapter_linear import MultiAdapterLinear
from gpu_actor.operators.routing import Routing
from support.engine import family_hooked, flat, make_spec, make_tenant, micro_batch, run_all
from support.oracle import adapter_tensors, largest_difference, same_bytes, train_alone
from support.tiny import family_model, random_model, tiny_model, token_rows

CPU = torch.device("cpu")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 24,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
SCALED = {
    "phi3": {"rope_parameters": LONGROPE, "max_position_embeddings": 96, "original_max_position_embeddings": 24},
    "llama": {"rope_parameters": DYNAMIC, "max_position_embeddings": 24},
    "falcon": {"rope_parameters": DYNAMIC, "max_position_embeddings": 24},
}


@pytest.mark.parametrize("family", SCALED)
def test_rotary_scaling_sees_one_sequence_at_a_time(family):
    """Lengths straddle the 24 positions of pretraining: in one row, or in padded rows, none sees another's length."""
    base = family_hooked(family, **SCALED[family])
    assert base.packed == (family != "falcon")
    batch = pack([micro_batch(None, [10, 60, 23, 25], 1), micro_batch(None, [9], 2)], CPU)
    found = base.logits(batch)
    for one, logits in zip(batch.input_ids[0].split(batch.lengths), found.split(batch.lengths), strict=True):
        stock = family_model(family, **SCALED[family])  # a new one: dynamic scaling remembers
        torch.testing.assert_close(logits, stock(one[None]).logits[0], rtol=0, atol=1e-4)


def test_longrope_equals_trainer_and_is_the_same_in_company(tmp_path):
    """One sample per batch: `Trainer` would choose the factors for a whole padded batch by its longest row."""
    base = family_hooked("phi3", **SCALED["phi3"])
    rows = token_rows(10, seed=1, low=15, high=40)
    training = {"learning_rate": 5e-3, "max_steps": 6, "per_device_train_batch_size": 1}
    specs = [make_spec(tmp_path / str(i), "mine", rows, {"r": 4}, training) for i in range(2)]
    alone, mine = (make_tenant(base, spec) for spec in specs)
    start = adapter_tensors(mine.weights)
    run_all(base, [alone])
    other = make_spec(tmp_path, "other", token_rows(10, seed=2, low=50, high=90), {"r": 2}, training)
    run_all(base, [make_tenant(base, other), mine], 300)
    assert same_bytes(flat(alone), flat(mine))
    theirs, _ = train_alone(family_model("phi3", **SCALED["phi3"]), specs[1], rows, start)
    assert largest_difference(adapter_tensors(mine.weights), theirs) < 1e-4


def test_sequences_that_see_each_other_lead_to_one_per_row(monkeypatch):
    def leaky(query, key, value, lengths, *rest):
        return packed_attention(query, key, value, (sum(lengths),), *rest)

    monkeypatch.setattr("gpu_actor.model.attention.packed_attention", leaky)
    base = BaseModel.serve("leaky", tiny_model())
    assert not base.packed
    assert "cannot be packed (its outputs differ from those of the stock model by" in base.remarks[0]
    assert "sequences see each other" in base.remarks[0]


def test_a_model_that_can_be_served_neither_way_is_refused_with_both_reasons(monkeypatch):
    """Attention leaks in the packed row, and padded rows are made to run the wrong way round."""
    from gpu_actor.model import body

    def leaky(query, key, value, lengths, *rest):
        return packed_attention(query, key, value, (sum(lengths),), *rest)

    def reversed_rows(batch):
        return pieces(batch)[::-1]

    pieces = body.padded_by_segment
    monkeypatch.setattr("gpu_actor.model.attention.packed_attention", leaky)
    monkeypatch.setattr("gpu_actor.model.body.padded_by_segment", reversed_rows)
    with pytest.raises(BaseModelError, match=r"Packed into one row: .*; one sequence per row: .*differ"):
        BaseModel.serve("broken", tiny_model())


def with_attention_argument(name, value):
    """A tiny model whose layers pass one more argument to their attention."""
    model = tiny_model()
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, forward=forward, **k: forward(*a, **{**k, name: value})
    return model


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("s_aux", torch.zeros(4), "its attention takes s_aux"),
        ("position_bias", torch.zeros(1), "its attention takes position_bias"),
        ("is_causal", False, "its attention is not causal"),
    ],
)
def test_an_attention_argument_that_is_not_honoured_is_not_ignored(name, value, reason, monkeypatch):
    model = with_attention_argument(name, value)
    monkeypatch.setitem(model.config.__dict__, "_attn_implementation_internal", "eager")
    base = BaseModel.serve("odd", model)
    assert not base.packed
    assert reason in base.remarks[0]


def test_attention_sinks_and_windows_in_masks_alone_fall_back():
    """gpt-oss has learned sinks: it is served exactly, in rows."""
    from transformers import GptOssConfig

    config = GptOssConfig(
        vocab_size=128, hidden_size=32, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=7,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, pad_token_id=0, max_position_embeddings=128,
    )  # fmt: skip
    base = BaseModel.serve("sinks", random_model(config))
    assert not base.packed
    assert "its attention takes s_aux" in base.remarks[0]


def test_a_router_that_is_more_than_a_product_is_no_linear_layer():
    """Phi-3.5-MoE's router derives from nn.Linear and gives three tensors: it stays as it is."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "phimoe", vocab_size=128, hidden_size=32, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    base = BaseModel.serve("phimoe", random_model(config))
    assert {linear.name.rsplit(".", 1)[-1] for linear in base.description.linears} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }


@pytest.mark.parametrize("rows", [6, 8])
def test_a_layer_that_sees_other_rows_than_the_shared_batch_has_is_refused(rows):
    """Else one adapter would change another's rows."""
    routing = Routing(CPU)
    layer = MultiAdapterLinear(torch.nn.Linear(4, 4).requires_grad_(False), 0, routing)
    routing.segments = pack([micro_batch(None, [3]), micro_batch(None, [4])], CPU).segments
    layer(torch.zeros(1, 7, 4))
    with pytest.raises(BaseModelError, match=f"applied to {rows} rows, not to the 7"):
        layer(torch.zeros(1, rows, 4))


def test_models_that_are_not_causal_are_refused_in_words():
    from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(BaseModelError, match="a bert model sees tokens that come later"):
        BaseModel.serve("bert", BertLMHeadModel(BertConfig(**sizes, intermediate_size=52)))
    t5 = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=52, num_layers=1, num_heads=2)
    with pytest.raises(BaseModelError, match="a t5 model has an encoder and a decoder"):
        BaseModel.serve("t5", T5ForConditionalGeneration(t5))


def test_functional_dropout_of_the_base_is_switched_off_too():
    """Falcon and OPT drop with functions that read a field; gradient checkpointing must not switch them on."""
    for family, field in (("falcon", "hidden_dropout"), ("opt", "dropout"), ("llama", "attention_dropout")):
        base = BaseModel.serve("tiny", family_model(family, **{field: 0.5}), gradient_checkpointing=True)
        assert "dropout (p=0.5) is switched off" in base.remarks[0]
        batch = pack([micro_batch(None, [10, 7], 1)], CPU)
        assert torch.equal(base.hidden(batch), base.hidden(batch))
