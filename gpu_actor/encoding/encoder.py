"""The data sets and questions that come to one actor, as token ids."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from gpu_actor.contract.config import DatasetConfig, DataSource, TrainingConfig
from gpu_actor.contract.errors import DataError, KilledError
from gpu_actor.contract.limits import Limits
from gpu_actor.contract.questions import AskRequest, Question, TokenIds
from gpu_actor.data.dataset import LoadedDataset, SourceSamples, assemble_dataset
from gpu_actor.data.samples import Collector
from gpu_actor.sandbox.channel import Message, Parts
from gpu_actor.sandbox.sandbox import OverLimitError, Sandbox

SECONDS = 60
"""Of processor time for one record, or for the questions of one request; usual ones take milliseconds."""

_MOST_MEMORY = 2 << 30  # of the process that reads; a record of 64 MiB takes a tenth to a half of it
_LEAST_MEMORY = 512 << 20
_REMEDY = "check the data, and dataset.chat_template if the job has one"


Found = dict[tuple[str | None, int], list[int] | str]
"""By chat template and number of the question, token ids or why there are none."""


class EncodedQuestions:
    """The questions of one request as token ids."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def __call__(self, question: int, chat_template: str | None) -> npt.NDArray[np.int32]:
        """Token ids [n] of a question by its number.

        Raises:
            DataError: It could not be encoded.
        """
        found = self._found[chat_template, question]
        if isinstance(found, str):
            raise DataError(found)
        return np.array(found, dtype=np.int32)


class Encoder:
    """Encodes for one base model, in processes with limits."""

    def __init__(self, base_model: str, trust_remote_code: bool, vocab_size: int, memory_limit: int) -> None:
        """Nothing is started before there is something to encode.

        Args:
            base_model: Folder, .gguf file or hub id, whose tokenizer is used.
            trust_remote_code: Let the tokenizer's own Python code run.
            vocab_size: Number of tokens that the base model knows.
            memory_limit: Bytes of this machine's memory that the actor may use; a quarter of them each process, within
                bounds, and half of them the samples of one job.
        """
        setup = {"base_model": base_model, "trust_remote_code": trust_remote_code, "vocab_size": vocab_size}
        memory = max(_LEAST_MEMORY, min(_MOST_MEMORY, memory_limit // 4))
        self.sandbox = Sandbox("gpu_actor.encoding.tasks", setup, Limits(memory, SECONDS))
        self._vocab_size, self._most_samples = vocab_size, memory_limit // 2
        self._loads = False  # whether the tokenizer is needed, and known to load within the limits

    def load_dataset(
        self, config: DatasetConfig, training: TrainingConfig, positions: int | None = None
    ) -> LoadedDataset:
        """As `gpu_actor.data.dataset.load_dataset`, and equal to it.

        Raises:
            KilledError: The process that reads it was killed.
            LorayError: As there, or it takes more memory or time than it may.
        """
        return assemble_dataset(config, training, self._read, positions)

    def encode(self, request: AskRequest) -> EncodedQuestions:
        """The questions of a request in the chat templates of those that are asked.

        Raises:
            LorayError: There is no tokenizer, or it takes more memory or time than it may.
        """
        templates = {who.chat_template for who in request.answerers}
        if self._loads and all(isinstance(question, TokenIds) for question in request.questions):
            ids = [self._known(question) for question in request.questions]
            return EncodedQuestions({(of, number): one for of in templates for number, one in enumerate(ids)})
        fields = {"asked": request.model_dump_json(), "vocab_size": self._vocab_size}
        try:
            done = self._encoded(fields)
        except OverLimitError as error:
            raise DataError(f"the question {error} to encode; check the chat template") from None
        self._loads = True
        found = zip(done["templates"], done["ids"], strict=True)
        return EncodedQuestions({(of, number): one for of, all_ids in found for number, one in enumerate(all_ids)})

    def close(self) -> None:
        """End the processes."""
        self.sandbox.close()

    def _encoded(self, fields: Message) -> Message:
        try:
            return self.sandbox.call("questions", fields, warm=True)
        except KilledError:  # somebody waits, so at once
            try:
                return self.sandbox.call("questions", fields, warm=True)
            except KilledError as error:
                raise KilledError(f"the process that encodes the question {error}; ask again") from None

    def _known(self, question: Question) -> list[int] | str:
        ids = list(question.ids) if isinstance(question, TokenIds) else []
        wrong = [i for i in ids if not 0 <= i < self._vocab_size]
        return (
            f"the question has a token {wrong[0]}, the base model knows 0 to {self._vocab_size - 1}" if wrong else ids
        )

    def _read(self, source: DataSource, training: TrainingConfig) -> SourceSamples:
        gathered = Collector(training.cutoff_len)

        def take(_message: Message, parts: Parts) -> None:
            *sides, desirable = parts
            gathered.put([sides[start : start + 3] for start in range(0, len(sides), 3)], desirable)
            if gathered.nbytes > self._most_samples:
                gib = self._most_samples / 2**30
                raise DataError(
                    f"{source.path}: its token ids and labels take more than {gib:.2g} GiB, half of what the actor may "
                    "use; give fewer samples, or lower training.cutoff_len"
                )

        fields = {
            "source": source.model_dump_json(exclude={"mix"}),
            "training": training.model_dump_json(),
            "vocab_size": self._vocab_size,
        }
        try:
            done = self.sandbox.call("data", fields, warm=self._loads, take=take)
        except KilledError as error:
            raise KilledError(f"{source.path}: the process that reads and encodes it {error}") from None
        except OverLimitError as error:
            raise DataError(f"{source.path}: one of its records {error} to read and encode; {_REMEDY}") from None
        self._loads |= done.pop("tokenizer")
        done["dropped"] = Counter(done["dropped"])
        return SourceSamples(gathered.collected(), **done)
