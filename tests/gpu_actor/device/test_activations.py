"""What a forward keeps for its backward: counted on fake tensors, against real forwards; and what follows from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gpu_actor.adapters.shapes import adapter_activation_bytes
from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.contract.description import Activations, BaseDescription
from gpu_actor.contract.footprint import DEFAULT_TOKEN_BUDGET, activation_bytes, base_bytes, first_token_budget
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.device.memory import accelerator_limit
from gpu_actor.loading.layers import describe_model
from gpu_actor.model import varlen
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.count_activations import count_activations, count_in
from gpu_actor.model.freeze import freeze
from support.engine import tiny_hooked
from support.tiny import family_config, random_model, tiny_config

GIB = 2**30
LENGTHS = (50, 40)


def kept_by(base, weights, lengths=LENGTHS):
    """Bytes of all storages that autograd keeps of a real forward, without those of the model and the adapter."""
    ids = [np.full(length, 5 + place, dtype=np.int32) for place, length in enumerate(lengths)]
    own = [*base.model.parameters(), *base.model.buffers(), weights.flat, weights.gradient]
    own = {tensor.untyped_storage()._cdata for tensor in own}
    kept = {}
    alive = []

    def keep(tensor):
        alive.append(tensor)
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base.hidden(pack([MicroBatch(weights, ids, ids)], base.device))
    return sum(size for address, size in kept.items() if address not in own)


def predicted(counted, base, lora, lengths=LENGTHS):
    tokens = sum(lengths)
    squares = sum(length**2 for length in lengths)
    own = adapter_activation_bytes(base.description, lora, tokens)
    return tokens * counted.token_bytes + squares * counted.square_bytes + own


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_counted_activations_are_what_autograd_keeps(kind):
    counted = count_activations(tiny_config(kind))
    base, lora = tiny_hooked(kind), LoraConfig(r=4)
    assert predicted(counted, base, lora) == pytest.approx(kept_by(base, base.new_adapter(lora)), rel=0.03)


class KeptAsByTheKernel(torch.autograd.Function):
    """`varlen_attn` on a CPU: it keeps queries, keys, values, outputs and the logarithms of the sums."""

    @staticmethod
    def forward(ctx, query, key, value, borders):
        heads = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        # a result of its own, laid out as the kernel lays it out
        out = torch.empty_like(query)
        out.copy_(F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
        ctx.save_for_backward(query, key, value, borders, out, query.new_zeros(query.shape[1::-1], dtype=torch.float32))
        return out


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "glm4", "gpt_neox", "gpt2", "olmo2", "smollm3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_sixteen_bits_a_gpus_way_of_computing_is_counted(family, monkeypatch):
    """Half of fp32 is wrong: norms and squares keep fp32 copies, and attention in one call keeps its output once."""
    config = family_config(family, **({"head_dim": 16} if family in ("llama", "mistral", "qwen2") else {}))
    counted = count_in(torch.bfloat16, config)
    monkeypatch.setattr(
        varlen, "varlen_attn", lambda q, k, v, borders, *_, **__: KeptAsByTheKernel.apply(q, k, v, borders)
    )
    model = random_model(config, dtype=torch.bfloat16)
    freeze(model)
    base, lora = BaseModel("tiny", model, kernels="cuda"), LoraConfig(r=4, target_modules="all-linear")
    base.body.pack().close()
    # attention with capped scores fills up a block of 128 tokens with each of these, as with those that are counted
    lengths = (64, 64, 64) if family == "gemma2" else LENGTHS
    kept = kept_by(base, base.new_adapter(lora), lengths)
    assert predicted(counted, base, lora, lengths) == pytest.approx(kept, rel=0.02)


@pytest.fixture(scope="module")
def eight_billion():
    """Llama 3.1 8B, described without its weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, **sizes)
    with torch.device("meta"):
        base = describe_model("8B", AutoModelForCausalLM.from_config(config))
    counted = count_in(torch.bfloat16, config, squares=False)
    return replace(base, activations=replace(counted, half=counted))


@pytest.mark.slow
def test_the_first_budget_of_a_gpu_is_what_it_has_room_for(eight_billion):
    """24, 40 and 80 GB beside 8 billion weights in bf16: about 1.4k, 4.5k and 8k tokens."""
    weights = base_bytes(eight_billion, 2)
    room = {size: accelerator_limit(size * GIB, 1.0) - weights for size in (24, 40, 80)}
    budgets = [first_token_budget(eight_billion, "cuda", bytes_, 2) for bytes_ in room.values()]
    assert [1300 < budgets[0] < 1600, 4200 < budgets[1] < 4700, budgets[2]] == [True, True, 8192]
    for tokens, bytes_ in zip(budgets[:2], room.values(), strict=False):
        masks = tokens * sum(linear.in_features for linear in eight_billion.linears)
        assert 0.99 * bytes_ < activation_bytes(eight_billion, tokens, 2) + masks <= bytes_
    assert first_token_budget(eight_billion, "cuda", room[24], 2, checkpointing=True) == 8192
    assert first_token_budget(eight_billion, "cuda", 0, 2) == 128
    assert first_token_budget(eight_billion, "cpu", 0, 2) == DEFAULT_TOKEN_BUDGET["cpu"]


def test_numbers_of_two_bytes_have_a_count_of_their_own():
    base = BaseDescription("tiny", "llama", (), 64, 2, 128, 100_000, activations=Activations(40.0, 4.0))
    counted = replace(base, activations=replace(base.activations, half=Activations(30.0, 1.0)))
    assert BaseDescription.from_dict(counted.to_dict()) == counted
    grown = [
        activation_bytes(one, 1000, size) - activation_bytes(one, 500, size)
        for one, size in ((base, 4), (base, 2), (base, 8), (counted, 4), (counted, 2))
    ]
    squares = 1000 * 512 - 500 * 500
    assert grown == [
        500 * 40 + squares * 4,
        500 * 20 + squares * 2,
        500 * 80 + squares * 8,
        500 * 40 + squares * 4,
        500 * 30 + squares,
    ]
