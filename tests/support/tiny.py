"""Tiny random base models and samples, built offline; shared by all tests."""

import json

import numpy as np

VOCABULARY = 128

# What all families share, under the names that most configurations use. 100 is no multiple of a vector register: odd
# ends are part of the test.
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SMALL = {"hidden_size": 32, "intermediate_size": 52}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_TOKENS = {name: _COMMON[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
_ALTERNATING = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Every family with its peculiarities on. Those that do not share the common names stand whole.
FAMILIES = {
    "llama": {**_COMMON, **_SMALL, "rope_parameters": _LLAMA3_ROPE},
    "mistral": {**_COMMON, **_SMALL, "sliding_window": 7},
    "qwen2": {**_COMMON, **_SMALL, "use_sliding_window": True, **_ALTERNATING},
    "qwen3": {**_COMMON, **_SMALL, "head_dim": 16},
    "gemma2": {
        **_COMMON,
        **_SMALL,
        **_ALTERNATING,
        "head_dim": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 9,
    },
    "gemma3_text": {**_COMMON, **_SMALL, **_ALTERNATING, "head_dim": 16, "query_pre_attn_scalar": 9},
    "phi3": {**_COMMON, **_SMALL, "sliding_window": 7},
    "glm": {**_COMMON, **_SMALL, "head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True},
    "glm4": {**_COMMON, **_SMALL, "head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True},
    "gpt_neox": {**_COMMON, **_SMALL, "use_parallel_residual": True, "rotary_pct": 0.25},
    "gpt2": {**_TOKENS, **_GPT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {
        **_COMMON,
        "hidden_size": 32,
        "ffn_dim": 52,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
        "dropout": 0.0,
    },
    "olmo2": {**_COMMON, **_SMALL},
    "smollm3": {
        **_COMMON,
        **_SMALL,
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "qwen3_moe": {
        **_COMMON,
        **_SMALL,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "falcon": {
        **_TOKENS,
        **_SMALL,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "multi_query": True,
        "parallel_attn": True,
        "ffn_hidden_size": 52,
    },
    "bloom": {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gptj": {
        **_TOKENS,
        **_GPT,
        "rotary_dim": 4,
        "n_inner": 52,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "stablelm": {**_COMMON, **_SMALL, "partial_rotary_factor": 0.5},
}


def tiny_config(kind="llama", **changes):
    """A small configuration of a model family.

    Without changes to the family's own settings, llama, mistral, qwen2 and qwen3 are 64 wide and plain but for
    Mistral's window: most tests want a base model, not a family. `family_config` has the peculiarities.
    """
    from transformers import AutoConfig

    extra = {"mistral": {"sliding_window": 7}, "qwen3": {"head_dim": 16}}.get(kind, {})
    return AutoConfig.for_model(kind, **{**_COMMON, **extra, **changes})


def family_config(family, **changes):
    """A still smaller configuration of any family of the table, with its peculiarities on."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{**FAMILIES[family], **changes})


def tiny_model(kind="llama", seed=0, dtype=None, **changes):
    """A randomly initialised causal language model; equal arguments give equal weights."""
    return random_model(tiny_config(kind, **changes), seed, dtype)


def family_model(family, seed=0, dtype=None, **changes):
    """A random model of `family_config`; equal arguments give equal weights."""
    return random_model(family_config(family, **changes), seed, dtype)


def random_model(config, seed=0, dtype=None):
    """A causal language model with random weights of a spread at which tokens differ."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # the default spread is so small that every token would look alike
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.2 if "embed" in name or "lm_head" in name else 0.12)
    return model.to(dtype or torch.float32).eval()


def token_rows(count, seed=0, low=5, high=40, prompt=True):
    """Random pre-tokenised samples with masked prompts, as dictionaries."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(random.integers(low, high))
        ids = random.integers(3, VOCABULARY, length).tolist()
        masked = int(random.integers(1, max(2, length // 2))) if prompt else 0
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


def write_rows(path, rows):
    """Write samples as jsonl; returns the path as a string."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
