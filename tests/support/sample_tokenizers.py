# ruff: noqa: E501
"""Tokenizers and chat templates for tests: built in code, no files and no network."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

MARKERS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|user|>", "<|assistant|>", "<s>", "</s>"]
CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome. What is the capital of Spain?",
    "user assistant system [INST] [/INST] think Hello there, how are you? I am fine, thank you.\n\n",
] * 20


def byte_level_tokenizer(template=None, eos="</s>", trim_offsets=False, adds_bos=False, cls=PreTrainedTokenizerFast):
    """A byte-level BPE tokenizer as GPT-2, Llama 3 and Qwen have it, with a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=MARKERS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", MARKERS.index("<s>"))]
        )
    return cls(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, chat_template=template)


def few_words_tokenizer():
    """A tokenizer of a few whole words, small enough for the tiny models."""
    words = ["<unk>", "<s>", "</s>", "who", "are", "you", "I", "am", "a", "model"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class WithoutOffsets(PreTrainedTokenizerFast):
    """The same tokens, but like a slow tokenizer it cannot say which characters they cover."""

    is_fast = False


# Each template has a twin that marks, with `{% generation %}`, what should be learned. The twins are the
# independent reference: transformers computes their masks without a line of Loray's code.
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CHATML_MARKED = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}

{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA2 = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}{% endfor %}"""
LLAMA2_MARKED = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}{% else %}{{ ' ' }}{% generation %}{{ m.content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""

LLAMA3 = """{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}

{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant

{% endif %}"""
LLAMA3_MARKED = """{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}

{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant

{% endif %}"""

# Not prefix-stable: only the last answer has a <think> block, as with Qwen3.
QWEN3 = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}{% if loop.last %}<think>
{{ parts[0].replace('<think>', '').strip() if parts | length > 1 else '' }}
</think>

{% endif %}{{ parts[-1].strip() }}{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
QWEN3_MARKED = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{% set parts = m.content.split('</think>') %}{% if loop.last %}<think>
{{ parts[0].replace('<think>', '').strip() if parts | length > 1 else '' }}
</think>

{% endif %}{{ parts[-1].strip() }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}

{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# The last turn is closed by one token more than the others, and that token starts like a role marker.
PHI3 = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""
PHI3_MARKED = """{% for m in messages %}<|{{ m.role }}|>
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% if loop.last %}

{{ eos_token }}{% endif %}{% endgeneration %}{% if not loop.last %}

{% endif %}{% else %}{{ m.content }}<|end|>
{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

# No end-of-turn token at all: the end-of-text token has to teach the end.
BARE = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""

TWINS = {
    "chatml": (CHATML, CHATML_MARKED),
    "llama2": (LLAMA2, LLAMA2_MARKED),
    "llama3": (LLAMA3, LLAMA3_MARKED),
    "qwen3": (QWEN3, QWEN3_MARKED),
    "phi3": (PHI3, PHI3_MARKED),
}
