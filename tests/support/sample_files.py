"""Small data files, and how they are loaded with a byte-level tokenizer."""

import json

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.data.dataset import load_dataset
from support.sample_tokenizers import CHATML, byte_level_tokenizer

TOKENIZER = byte_level_tokenizer(CHATML)
VOCAB = len(TOKENIZER)
GOOD = {"instruction": "Hello", "output": "Hi"}


def no_tokenizer():
    raise RuntimeError("a tokenizer was loaded, though the data is tokenised")


def load(path, tokenizer=lambda: TOKENIZER, data_format="auto", val_size=0.0, vocab_size=VOCAB, **training):
    config = DatasetConfig(path=str(path), format=data_format, val_size=val_size)
    return load_dataset(config, TrainingConfig(**training), tokenizer, vocab_size)


def write(folder, *records, name="data.jsonl"):
    """A .jsonl file; strings and bytes are written as they are."""
    lines = [
        record if isinstance(record, bytes) else (record if isinstance(record, str) else json.dumps(record)).encode()
        for record in records
    ]
    path = folder / name
    path.write_bytes(b"\n".join(lines))
    return path


def tokens(*lengths):
    """One tokenised record per length; sample i consists of tokens i."""
    return [{"input_ids": [i] * length} for i, length in enumerate(lengths)]


def as_lists(samples):
    return [(ids.tolist(), labels.tolist()) for ids, labels in (samples[i] for i in range(len(samples)))]
