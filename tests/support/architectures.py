"""Tiny configurations of architectures that are multimodal, recurrent or mixtures, as their checkpoints have them."""

from support.tiny import FAMILIES, random_model

_PLAIN = {**FAMILIES["olmo2"], "head_dim": 16}
_WINDOWS = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
_LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_heads": 4,
    "patch_size": 14,
    "out_hidden_size": 32,
}
_QWEN_TEXT = {
    **FAMILIES["olmo2"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
}
_GEMMA4 = {
    **_PLAIN,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_hidden_layers": 5,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 8,
}
_LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 20}
_SHARED_EXPERT = {**_MIXTURE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}

ARCHITECTURES = {
    "gemma3": {"text_config": {**_PLAIN, **_WINDOWS}, "vision_config": _TOWER, "mm_tokens_per_image": 4},
    "gemma4": {"text_config": _GEMMA4, "vision_config": {**_TOWER, "head_dim": 8, "num_key_value_heads": 4}},
    "mistral3": {
        "text_config": {**_PLAIN, "model_type": "mistral"},
        "vision_config": {**_TOWER, "model_type": "pixtral", "head_dim": 8},
        "spatial_merge_size": 1,
    },
    "qwen2_vl": {"text_config": _QWEN_TEXT, "vision_config": {**_QWEN_TOWER, "embed_dim": 32}},
    "qwen2_5_vl": {"text_config": _QWEN_TEXT, "vision_config": {**_QWEN_TOWER, "fullatt_block_indexes": [0]}},
    "qwen3_vl": {
        "text_config": {**_QWEN_TEXT, "head_dim": 8},
        "vision_config": {**_QWEN_TOWER, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
    "qwen3_5": {"text_config": {**_PLAIN, **_LINEAR_ATTENTION}},
    "gemma4_text": _GEMMA4,
    "falcon_h1": {**_PLAIN, **_MAMBA, "mamba_chunk_size": 16},
    "mamba2": {
        "vocab_size": 128,
        "hidden_size": 32,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 1,
        "num_hidden_layers": 2,
        "chunk_size": 16,
    },
    "lfm2": {**_PLAIN, "layer_types": ["conv", "full_attention"]},
    "modernbert-decoder": {
        **{name: _PLAIN[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
        "num_hidden_layers": 2,
        "global_attn_every_n_layers": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "llama4_text": {
        **_PLAIN,
        "num_local_experts": 4,
        "intermediate_size_mlp": 52,
        "attention_chunk_size": 8,
        "no_rope_layers": [1, 0],
        "interleave_moe_layer_step": 2,
    },
    "gpt_oss": {**_PLAIN, **_WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**_PLAIN, "num_local_experts": 4},
    "qwen2_moe": {
        **_PLAIN,
        **_MIXTURE,
        "num_experts": 4,
        "shared_expert_intermediate_size": 20,
        "mlp_only_layers": [0],
    },
    "glm4_moe": {**_PLAIN, **_SHARED_EXPERT, "first_k_dense_replace": 1},
    "deepseek_v3": {
        **_PLAIN,
        **_SHARED_EXPERT,
        **_LATENT,
        "head_dim": 4,  # of the rotary part alone
        "q_lora_rank": 16,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
    },
    "qwen3_next": {
        **_PLAIN,
        **_LINEAR_ATTENTION,
        **_MIXTURE,
        "num_experts": 4,
        "shared_expert_intermediate_size": 20,
        "mlp_only_layers": [],
    },
    "ernie4_5_moe": {
        **_PLAIN,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 20,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
}


def architecture_model(kind, seed=0):
    """A random model of an architecture; equal arguments give equal weights."""
    from transformers import AutoConfig

    return random_model(AutoConfig.for_model(kind, **ARCHITECTURES[kind]), seed)
