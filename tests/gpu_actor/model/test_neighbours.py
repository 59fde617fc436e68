"""No sequence sees another one, whatever the family, the dtype and the neighbours."""

import functools

import numpy as np
import pytest
import torch

from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.freeze import freeze
from gpu_actor.model.isolation import Isolation
from gpu_actor.model.probe import Probe
from gpu_actor.model.serving import choose_serving
from support.tiny import VOCABULARY, family_model, random_model, tiny_model

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_MAMBA2 = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
RECURRENT = {
    "recurrent_gemma": {
        "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16, "head_dim": 8, "conv1d_width": 4,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "zamba": {
        "num_key_value_heads": 4, "num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2,
        "mamba_d_state": 8, "mamba_dt_rank": 4, "n_mamba_heads": 2, "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_key_value_heads": 4, "num_hidden_layers": 3, "mamba_d_state": 8, "mamba_headdim": 16, "mamba_ngroups": 1,
        "n_mamba_heads": 4, "chunk_size": 16, "use_mamba_kernels": False, "adapter_rank": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba"], "num_mem_blocks": 1,
    },
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "lfm2": {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3,
        "block_multiple_of": 4,
    },
    "lfm2_moe": {
        **_EXPERTS, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "num_dense_layers": 0,
    },
    "qwen3_next": {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": _DELTA,
    "granitemoehybrid": {
        **_MAMBA2, "layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
    },
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "block_size": 16, "head_dim": 8,
    },
    "olmo_hybrid": {
        "layer_types": ["linear_attention", "full_attention"], "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    },
}  # fmt: skip
QUICK = ("recurrent_gemma", "lfm2", "qwen3_5_text")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECURRENT]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def recurrent_model(family, dtype):
    from transformers import AutoConfig

    return random_model(AutoConfig.for_model(family, **{**_COMMON, **RECURRENT[family]}), dtype=dtype)


@functools.cache
def ids(seed, length):
    return np.random.default_rng(seed).integers(3, VOCABULARY, length, dtype=np.int32)


def watched_states(base, seed):
    """Hidden states of one sequence between two others of the same micro-batch, all of fixed lengths."""
    sequences = [ids(seed, 41), ids(0, 10), ids(seed + 1, 6)]
    with torch.no_grad():
        return base.hidden(pack([MicroBatch(None, sequences, sequences)], base.device))[0, 41:51]


def served(family, dtype):
    """The body alone: heads are no part of the question. One channel is large, as in every large model."""
    model = recurrent_model(family, dtype) if family in RECURRENT else family_model(family, dtype=dtype)
    with torch.no_grad():
        last_norm = [
            p for name, p in model.named_parameters() if p.dim() == 1 and "norm" in name and "layers" not in name
        ]
        last_norm[-1][5] = 20.0
    freeze(model)
    probe, base = Probe(family, model), BaseModel(family, model)
    return base, choose_serving(family, base.body, probe, base.description)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_a_sequence_does_not_change_by_one_bit_with_its_neighbours(family, dtype):
    """Recurrent layers and convolutions run over the whole row, which a tolerance of half precision cannot tell."""
    base, why_not_packed = served(family, dtype)
    assert not base.packed
    assert why_not_packed
    expected = watched_states(base, 1)
    if base.description.experts and dtype == torch.float32:  # fp32 experts round by the number of their rows
        torch.testing.assert_close(watched_states(base, 11), expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(watched_states(base, 11), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("family", ["recurrent_gemma", "zamba"])
@pytest.mark.slow
def test_a_leak_below_the_tolerance_of_the_dtype_is_called_by_its_name(family, dtype):
    assert "sequences see each other when packed" in served(family, dtype)[1]


def test_a_leak_in_the_backward_alone_is_seen():
    """A kernel may compute each sequence by itself and mix their gradients."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient + gradient.sum(dim=1, keepdim=True)

    model = tiny_model()
    model.model.layers[0].register_forward_pre_hook(lambda _, args: (Mixed.apply(args[0]), *args[1:]))
    with pytest.raises(BaseModelError, match="see each other when packed: the gradient of one reaches another"):
        BaseModel.serve("mixed", model)


def test_experts_that_only_round_by_their_rows_stay_packed():
    base = BaseModel.serve("mixture", family_model("qwen3_moe"))
    assert base.packed
    assert Isolation(base.body, None).forward_change() > 0, "nothing rounds: the small copy was not asked"


def test_a_mixture_that_hides_a_leak_under_its_rounding_is_refused(monkeypatch):
    """Something of all rows that no gradient shows, far below the tolerance: the small copy in fp64 tells."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    forward = Qwen3MoeSparseMoeBlock.forward

    def crowded(self, hidden_states):
        return forward(self, hidden_states) + 1e-6 * hidden_states.detach().mean(dim=(0, 1))

    monkeypatch.setattr(Qwen3MoeSparseMoeBlock, "forward", crowded)
    with pytest.raises(BaseModelError, match=r"see each other when packed: .*see each other when padded: with other"):
        BaseModel.serve("crowded", family_model("qwen3_moe"))


def test_nothing_of_the_question_stays_behind():
    base = BaseModel.serve("tiny", family_model("llama"))
    assert not base.model.get_input_embeddings()._forward_hooks
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in base.model.parameters())
