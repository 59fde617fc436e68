"""Answers of a base model and its adapters, token by token: key-value cache, choice of tokens, where an answer ends."""
