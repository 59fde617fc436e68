"""A tiny random model of every causal architecture that the installed transformers knows.

Configurations are shrunk mechanically: every size that a configuration has by one of the names below becomes small,
in its parts too. `OVERRIDES` holds what some architectures want beside that, `NOT_BUILT` those that stay out.
"""

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from support.tiny import FAMILIES, VOCABULARY, random_model

_VALUES = {
    32: """hidden_size n_embd d_model emb_dim embedding_size embedding_dim input_embedding_size output_embedding_size
        word_embed_proj_dim lru_width mamba_d_ssm cross_attention_hidden_size out_hidden_size
        backbone_hidden_size hidden_size_global projector_output_dim vision_output_dim""",
    56: """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dff n_inner d_inner dim_ff
        feed_forward_size intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size""",
    4: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers
        num_decoder_layers num_blocks num_experts n_routed_experts num_local_experts moe_num_experts rotary_dim
        num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads
        decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads
        linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads index_n_heads""",
    2: """num_key_value_heads swa_num_key_value_heads num_kv_heads linear_num_key_heads num_experts_per_tok
        num_experts_per_token moe_topk moe_k top_k_experts global_attn_every_n_layers num_dense_layers index_topk_blocks
        n_mamba_heads eos_token_id forced_eos_token_id sep_token_id""",
    1: """n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts
        first_k_dense_replace mamba_n_groups n_groups moe_layer_start_index bos_token_id decoder_start_token_id
        cls_token_id""",
    0: "pad_token_id",
    8: """head_dim d_head dim_head kv_channels attention_head_size swa_head_dim global_head_dim qk_rope_head_dim
        qk_nope_head_dim v_head_dim index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim
        mamba_d_head mamba_head_dim mamba_d_state ssm_state_size state_size time_step_rank mamba_dt_rank
        hidden_size_per_layer_input laurel_rank gated_norm_rank index_topk attention_chunk_size block_size d_rel""",
    16: """kv_lora_rank q_lora_rank o_lora_rank chunk_size mamba_chunk_size pronunciation_embed_dim shape_embed_dim
        rel_extent""",
    24: """moe_intermediate_size expert_ffn_hidden_size shared_intermediate_size shared_expert_intermediate_size
        shared_experts_intermediate_size""",
    7: "sliding_window sliding_window_size window_size attention_window_size",
    512: "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length",
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size",
}
_SMALL = {name: value for value, names in _VALUES.items() for name in names.split()}
_MAMBA = {"mamba_d_head": 16, "mamba_n_heads": 4, "mamba_expand": 2}
_QWEN4 = {
    "hc_lowrank": 8,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_DOTS3 = {
    f"swa_{name}": size
    for size, names in {
        4: ("num_attention_heads", "num_key_value_heads"),
        8: ("qk_nope_head_dim", "v_head_dim"),
        16: ("head_dim", "q_lora_rank", "kv_lora_rank"),
    }.items()
    for name in names
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# What an architecture wants beside the small sizes, mostly so that a tiny model has all of its kinds of layers.
OVERRIDES = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"pyramid_num_routed": [-1, 4, 4, 4], "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_out_dim": 32, "adapter_input_size": 32},
    },
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_key_value_heads": 4,
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "use_mamba_kernels": False,
    },
    "zamba2": {"num_key_value_heads": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}

# Causal by name only, or not to be had tiny.
NOT_BUILT = {
    "gemma3n": "its vision tower is a model of the package timm",
    "gemma4_assistant": "a draft head on the hidden states of a Gemma 4 model, not a model of its own",
    "gemma4_unified_assistant": "a draft head on the hidden states of a Gemma 4 model, not a model of its own",
    "musicgen": "makes audio codes; transformers builds it with its text and audio encoders alone",
    "musicgen_melody": "makes audio codes; transformers builds it with its text and audio encoders alone",
}

ARCHITECTURES = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in NOT_BUILT]

# In bf16 the fused product of experts takes no row whose bytes are no multiple of 16.
_FUSED_EXPERTS = {"qwen3_moe": {"moe_intermediate_size": 24}}


def _shrunk(config):
    """The small values of what a configuration has, by its own names."""
    small = {}
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and hasattr(part := getattr(config, name), "to_dict"):
            small[name] = {**_shrunk(part), "model_type": part.model_type}
        elif name in _SMALL and value is not None:
            small[name] = _SMALL[name]
        elif "drop" in name and isinstance(value, float):
            small[name] = 0.0
        elif name in ("is_decoder", "causal"):
            small[name] = True
    if "kv_lora_rank" in small:  # multi-head latent attention has no groups
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def _merged(small, changes):
    both = {
        name: _merged(small[name], value) if isinstance(value, dict) and isinstance(small.get(name), dict) else value
        for name, value in changes.items()
    }
    return {**small, **both}


def architecture_config(kind):
    """A tiny configuration: a family of `support.tiny` as it stands there, any other shrunk."""
    if kind in FAMILIES:
        return CONFIG_MAPPING[kind](**{**FAMILIES[kind], **_FUSED_EXPERTS.get(kind, {})})
    return CONFIG_MAPPING[kind](**_merged(_shrunk(CONFIG_MAPPING[kind]()), OVERRIDES.get(kind, {})))


def save_architecture(kind, folder):
    """Write a tiny random model with its configuration to a folder, as a user's base model lies there."""
    random_model(architecture_config(kind)).save_pretrained(folder)
