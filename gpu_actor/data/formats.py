"""What a record means: its columns as a sample, by the data format that the first record of a file settles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping

from gpu_actor.contract.config import DatasetFormat, DataSource, TrainingConfig
from gpu_actor.contract.errors import DataError, UnfitDataError
from gpu_actor.contract.messages import shorten
from gpu_actor.contract.objective_fields import PAIR_OBJECTIVES
from gpu_actor.data.alpaca import read_alpaca
from gpu_actor.data.conversations import assistant_turns, read_messages, read_sharegpt, read_tools, with_system
from gpu_actor.data.format_columns import check_columns, columns_read, detect_format
from gpu_actor.data.meaning import is_blank
from gpu_actor.data.preferences import read_pair
from gpu_actor.data.readers.record import Record
from gpu_actor.data.records import Chat, Pair, Plain, Sample, Single, read_answer, read_any_text, read_tokens
from gpu_actor.data.unpaired import LABEL, read_label, unpaired
from gpu_actor.data.unread import UnreadColumns

# What the objectives without pairs learn from, and how pairs may be written for them.
_LEARNS_FROM = {
    "sft": ("samples", "give samples"),
    "kto": ("single answers", "write each answer as a record of its own with a label"),
}
_LISTS = ("messages", "conversations", "history", "input_ids", "labels", "attention_mask")


class SampleReader:
    """Reads the records of one data set as samples.

    Attributes:
        unread: The columns that none of them was read from.
    """

    def __init__(self, config: DataSource, training: TrainingConfig, vocab_size: int) -> None:
        """Nothing is settled before the first record.

        Args:
            config: `format` and `columns` are used.
            training: `objective` is used: whether samples, preference pairs or labelled answers are wanted.
            vocab_size: Number of tokens that the base model has.
        """
        self._config = config
        self._objective = training.objective
        self._vocab_size = vocab_size
        self._format: DatasetFormat | None = None
        self.unread = UnreadColumns()

    def read(self, record: Record) -> Sample:
        """Read one record.

        Raises:
            UnfitDataError: The format of the first record does not go with the objective, or does not read a column
                that `dataset.columns` names.
            DataError: The record is not of the format.
        """
        if self._format is None:
            self._format = self._settle_format(record)
        self.unread.add(record, self._columns(record, self._format))
        if self._objective != "kto":
            return read_sample(record, self._format, self._vocab_size)
        desirable = read_label(record)
        rest = {name: value for name, value in record.items() if name != LABEL}
        return unpaired(read_single(rest, self._format, self._vocab_size), desirable, self._format)

    def _columns(self, record: Record, data_format: DatasetFormat) -> frozenset[str]:
        columns = columns_read(record, data_format)
        return columns | {LABEL} if self._objective == "kto" else columns

    def _settle_format(self, record: Record) -> DatasetFormat:
        data_format = self._config.format
        if data_format == "auto":
            data_format = detect_format(record, pairs=self._objective in PAIR_OBJECTIVES)
        self._check_objective(data_format)
        self._check_renamed(record, data_format)
        return data_format

    def _check_objective(self, data_format: DatasetFormat) -> None:
        pairs, wanted = data_format == "preference", self._objective in PAIR_OBJECTIVES
        if pairs and not wanted:
            learns, or_give = _LEARNS_FROM[self._objective]
            raise UnfitDataError(
                f"holds preference pairs, but training.objective is {self._objective}, which learns from {learns}; set "
                f"the objective to dpo, cpo, orpo or simpo, or {or_give}"
            )
        if data_format == "text" and self._objective == "kto":
            raise UnfitDataError(
                "holds samples of the format text, but training.objective is kto, which learns from answers to "
                "prompts; give prompt and completion, or set the objective to sft"
            )
        if wanted and not pairs:
            raise UnfitDataError(
                f"holds samples of the format {data_format}, but training.objective is {self._objective}, which "
                "learns from preference pairs; give pairs (chosen and rejected), or set the objective to sft"
            )

    def _check_renamed(self, record: Record, data_format: DatasetFormat) -> None:
        """Refuse a renamed column that the format does not read: it was asked for, and would be dropped."""
        if not self._config.columns:
            return
        columns = self._columns(record, data_format)
        for field, column in self._config.columns.items():
            if field not in columns:
                raise UnfitDataError(
                    f"dataset.columns.{field}: {shorten(column)} would not be read: these records are of the format "
                    f"{data_format}, which has {', '.join(sorted(columns))}; remove it, or set dataset.format"
                )


def read_sample(record: Record, data_format: DatasetFormat, vocab_size: int) -> Single | Pair:
    """Read one record in a format that is not `auto`.

    Raises:
        DataError: A field is missing, empty, of the wrong type or not supported; its name comes first.
    """
    if data_format != "preference":
        return read_single(record, data_format, vocab_size)
    record = {**record, **_lists_in_text(record)}
    check_columns(record, data_format)
    return read_pair(record, vocab_size)


def read_single(record: Record, data_format: DatasetFormat, vocab_size: int) -> Single:
    """Read one record in a format that is neither `auto` nor `preference`.

    Raises:
        DataError: As `read_sample`.
    """
    record = {**record, **_lists_in_text(record)}
    check_columns(record, data_format)
    if data_format == "tokens":
        return read_tokens(record, vocab_size)
    return _READERS[data_format](record)


def _lists_in_text(record: Record) -> Record:
    """Those columns that are lists by nature and stand there as JSON text, as CSV has them."""
    lists: Record = {}
    for field in _LISTS:
        value = record.get(field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):  # its reader says what is wrong
                lists[field] = json.loads(value)
    return lists


def _read_messages(record: Record) -> Chat:
    messages = with_system(read_messages(record["messages"], "messages"), "messages", record.get("system"))
    return Chat(messages, assistant_turns(messages, "messages"), tools=read_tools(record.get("tools")))


def _read_sharegpt(record: Record) -> Chat:
    messages = read_sharegpt(record["conversations"], "conversations", record.get("system"))
    return Chat(messages, assistant_turns(messages, "conversations"), tools=read_tools(record.get("tools")))


def _read_prompt_completion(record: Record) -> Plain | Chat:
    prompt, completion = record["prompt"], record["completion"]
    tools = read_tools(record.get("tools"))
    if isinstance(prompt, list) and isinstance(completion, list):
        before = with_system(read_messages(prompt, "prompt"), "prompt", record.get("system"))
        messages = before + read_messages(completion, "completion")
        return Chat(messages, assistant_turns(messages, "completion", len(before)), tools=tools)
    if isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(
            f"completion: prompt and completion must both be strings or both be lists of messages, "
            f"not {shorten(prompt)} and {shorten(completion)}"
        )
    for field in ("system", "tools"):
        if not is_blank(record.get(field)):
            raise DataError(f"{field}: only a conversation has it; give prompt and completion as lists of messages")
    return Plain(read_any_text(prompt, "prompt"), read_answer(completion, "completion"))


def _read_plain_text(record: Record) -> Plain:
    return Plain("", read_answer(record["text"], "text"))


_READERS: Mapping[str, Callable[[Record], Plain | Chat]] = {
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "alpaca": read_alpaca,
    "prompt_completion": _read_prompt_completion,
    "text": _read_plain_text,
}
