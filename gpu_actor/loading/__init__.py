"""From the reference of a base model to a stock transformers model and its tokenizer."""
