# ruff: noqa: RUF001
"""Tiny original ChatGLM checkpoints and sentencepiece models, made offline."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FIXTURE = Path(__file__).parents[1] / "fixtures" / "chatglm3-tiny"
CORPUS = [
    "The quick brown fox jumps over the lazy dog. philosophy is not sophistry",
    "你好，世界。我是一个语言模型，可以回答问题。今天天气很好，我们去公园散步吧。",
    "def f(x):\n    return x + 1  # 12345",
    "Hello there, how are you? I am fine 2024 1999 100",
] * 30


def fixture_config():
    """The fixture's config.json."""
    return json.loads((FIXTURE / "config.json").read_text())


def write_checkpoint(folder, config=None, tensors=None, name="model.safetensors"):
    """A checkpoint in a folder; by default the fixture's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fixture_config() if config is None else config))
    save_file(load_file(FIXTURE / "model.safetensors") if tensors is None else tensors, folder / name)
    return folder


def without_groups(config, tensors):
    """The same network without multi-query attention: every head has its own keys and values, head by head."""
    heads, groups, size = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    changed = {}
    for name, tensor in tensors.items():
        if re.search(r"query_key_value", name):
            query, key, value = tensor.split([heads * size, groups * size, groups * size])
            parts = [query.view(heads, 1, size, *tensor.shape[1:])]
            for part in (key, value):
                grouped = part.view(groups, 1, size, *tensor.shape[1:])
                parts.append(grouped.repeat_interleave(heads // groups, dim=0))
            tensor = torch.cat(parts, dim=1).reshape(heads * 3 * size, *tensor.shape[1:])
        changed[name] = tensor
    return {**config, "multi_query_attention": False}, changed


def train_sentencepiece(folder, model_type="bpe", rule="identity", extra_blanks=True):
    """Train a small sentencepiece model as `tokenizer.model`; returns sentencepiece's own processor of it."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=430,
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name=rule,
        remove_extra_whitespaces=not extra_blanks,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
