"""ChatGLM's sentencepiece tokenizer as a fast tokenizer of transformers, with offsets and a chat template.

The originals come as Python code beside `tokenizer.model`. Here the sentencepiece model itself is read, and the
tokens that the code adds behind its vocabulary get the same ids. What the code does in `build_chat_input` (ChatGLM3)
and `build_prompt` (ChatGLM2) is a chat template.

Two names differ from the original: `sop` and `eop` are called `<sop>` and `<eop>`, as in GLM-4, because a fast
tokenizer would find the bare ones in the middle of words (philo-sop-hy). Ids are the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import BaseModelError

_MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_BLANK = "\u2581"  # sentencepiece's sign for a blank
_UNIGRAM, _BPE = 1, 2  # sentencepiece's model types
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # sentencepiece's piece types

# A message is its role's token, its metadata (the name of a called tool, or nothing) and a newline, and its content.
# sentencepiece encodes the two texts apart, which puts a blank before each; the blank before the content is written
# out here. A message without content has none.
_CHATGLM3 = """[gMASK]<sop>
{%- for m in messages %}
{%- set role = 'observation' if m['role'] == 'tool' else m['role'] %}
{%- if role not in ['system', 'user', 'assistant', 'observation'] %}
{{- raise_exception('ChatGLM3 has no role ' ~ m['role']) }}
{%- endif %}
{%- set content = m['content'] or '' %}
{%- if tools and loop.first %}
{%- if role != 'system' %}{{ raise_exception('tools need a system message in front') }}{% endif %}
{%- set content = content ~ '\\n' ~ (tools | tojson(indent=4)) %}
{%- endif %}
{{- '<|' ~ role ~ '|>' ~ (m['metadata'] or '') ~ '\\n' }}
{%- if content %}{{ ' ' ~ content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

# Rounds of question and answer. The last answer of a conversation is encoded apart from its prompt in the original
# training script, which puts a blank before it; earlier answers are part of the prompt.
_CHATGLM2 = """[gMASK]<sop>
{%- for m in messages %}
{%- if m['role'] != ('user' if loop.index0 is even else 'assistant') %}
{{- raise_exception('ChatGLM2 has only user and assistant, in turn; this is ' ~ m['role']) }}
{%- endif %}
{%- if m['role'] == 'user' %}
{{- '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\\n\\n\u95ee\uff1a' ~ m['content'] ~ '\\n\\n\u7b54\uff1a' }}
{%- else %}
{{- (' ' if loop.last else '') ~ m['content'] ~ ('' if loop.last else '\\n\\n') }}
{%- endif %}
{%- endfor %}"""


def chatglm_tokenizer(folder: Path, generation: int | None) -> Any:
    """The tokenizer of an original ChatGLM2 or ChatGLM3 checkpoint.

    Args:
        folder: Holds `tokenizer.model`, and `tokenizer_config.json` if there is one.
        generation: 2 or 3; None: ChatGLM3 if its role tokens are in the tokenizer's configuration, else without a
            chat template.

    Raises:
        BaseModelError: It is no sentencepiece model, or sentencepiece is not installed.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    config = _config(folder)
    if generation is None and any(role in json.dumps(config) for role in _ROLES):
        generation = 3
    proto = _read(folder / "tokenizer.model")
    backend = _backend(proto)
    extra = _MASKS if generation == 2 else (*_MASKS, *_ROLES)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in extra])
    ids = {token: backend.token_to_id(token) for token in ("[gMASK]", "<sop>", "</s>")}
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", pair="[gMASK] <sop> $A $B </s>", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_template(config, generation),
    )


def _template(config: dict[str, Any], generation: int | None) -> str | None:
    """The checkpoint's own chat template if it has one, else that of its generation."""
    template = config.get("chat_template")
    if isinstance(template, str) and template:
        return template.replace("[gMASK]sop", "[gMASK]<sop>")
    return {2: _CHATGLM2, 3: _CHATGLM3}.get(generation or 0)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _read(path: Path) -> Any:
    """The sentencepiece model of a file, as its protocol buffer."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise BaseModelError(
            f"ChatGLM's tokenizer needs sentencepiece and protobuf ({error}); install the extra: "
            "pip install 'loray[chatglm]'"
        ) from None
    from google.protobuf.message import DecodeError

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise BaseModelError(f"{path} is no sentencepiece model ({error}); fetch the model again") from None
    if not proto.pieces or proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise BaseModelError(
            f"{path} is no sentencepiece model of ChatGLM2 or ChatGLM3 (GLM-4's is another kind of file); put a "
            "tokenizer.json beside it, such as that of GLM-4's -hf model"
        )
    return proto


def _backend(proto: Any) -> Any:
    """The tokenizer of a sentencepiece model, without the tokens that ChatGLM adds."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE, Unigram
    from transformers.convert_slow_tokenizer import generate_merges

    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    fallback = proto.trainer_spec.byte_fallback
    if proto.trainer_spec.model_type == _BPE:
        vocab = {piece: number for number, (piece, _) in enumerate(pieces)}
        apart = {piece.piece for piece in proto.pieces if piece.type != _NORMAL}
        merges = generate_merges(vocab, pieces, skip_tokens=apart)
        unknown = next(piece.piece for piece in proto.pieces if piece.type == _UNKNOWN)
        tokenizer = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    else:
        unknown_id = next(i for i, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
        tokenizer = Tokenizer(Unigram(pieces, unk_id=unknown_id, byte_fallback=fallback))
    rules = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        from tokenizers import Regex

        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(_BLANK))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    control = [piece.piece for piece in proto.pieces if piece.type == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer
