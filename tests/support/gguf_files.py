"""A tiny LLaMA model as a GGUF file, as llama.cpp would write it."""

import numpy as np
from gguf import GGUFWriter

from support.tiny import VOCABULARY


def permuted(weight, heads):
    """Rows in the order of llama.cpp, whose rotary positions pair neighbours instead of halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, model):
    """A tiny llama as llama.cpp stores it, in fp32, with a byte-level tokenizer."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<unk>", "<s>", "</s>", "t", "h", "th"]
    writer.add_token_list([*tokens, *(f"other{i}" for i in range(VOCABULARY - len(tokens)))])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    inner = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in model.state_dict().items():
        short = name.removeprefix("model.").removesuffix(".weight")
        value = tensor.numpy().astype(np.float32)
        if short.startswith("layers."):
            _, number, rest = short.split(".", 2)
            if rest in ("self_attn.q_proj", "self_attn.k_proj"):
                value = permuted(value, config.num_attention_heads if "q_" in rest else config.num_key_value_heads)
            writer.add_tensor(f"blk.{number}.{inner[rest]}.weight", np.ascontiguousarray(value))
        else:
            writer.add_tensor(f"{names[short]}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
