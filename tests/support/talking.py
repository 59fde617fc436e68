"""A tiny base model that has a tokenizer, and so can be asked in words."""

from support.sample_tokenizers import CHATML, byte_level_tokenizer
from support.tiny import tiny_model

VOCABULARY = 400


def save_talking_base(folder):
    """Write the model and its tokenizer; returns the folder as a string."""
    tiny_model(vocab_size=VOCABULARY).save_pretrained(folder)
    byte_level_tokenizer(CHATML, eos="<|im_end|>").save_pretrained(folder)
    return str(folder)
