"""Tokenised samples in flat arrays, and how they are gathered: a million of them are a few arrays, not objects."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu_actor.data.records import IGNORE_INDEX

IdArray = npt.NDArray[np.int32]
Labelled = tuple[IdArray, IdArray]
"""Token ids and unshifted labels of one sequence."""

NO_ANSWER = "no token with loss is left"
EMPTY_ANSWER = "the answer is empty"
EQUAL_SIDES = "both sides of the pair are the same"


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples one behind the other in flat arrays.

    Attributes:
        input_ids: The token ids of all samples, one after the other.
        labels: Their labels, unshifted as in transformers; -100 where no loss is taken.
        offsets: Where each sample starts, and the end of the last one.
        order: Which of these samples the set holds, in order; None holds all. A part of a set shares its arrays.
    """

    input_ids: IdArray
    labels: IdArray
    offsets: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.order is None else len(self.order)

    def __getitem__(self, index: int) -> Labelled:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place = index if self.order is None else int(self.order[index])
        start, end = self.offsets[place], self.offsets[place + 1]
        return self.input_ids[start:end], self.labels[start:end]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, int64 [n]."""
        lengths = np.diff(self.offsets)
        return lengths if self.order is None else lengths[self.order]

    def select(self, indices: npt.NDArray[np.int64]) -> SampleSet:
        """Some samples in the given order; no token is copied."""
        order = indices if self.order is None else self.order[indices]
        return SampleSet(self.input_ids, self.labels, self.offsets, order)


@dataclass(frozen=True, eq=False)
class PairSet:
    """Preference pairs: sample i is (chosen[i], rejected[i]).

    Both sides include the prompt, and the labels are -100 on it.
    """

    chosen: SampleSet
    rejected: SampleSet

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Labelled, Labelled]:
        return self.chosen[index], self.rejected[index]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of both sides together, int64 [n]."""
        return self.chosen.lengths() + self.rejected.lengths()

    def select(self, indices: npt.NDArray[np.int64]) -> PairSet:
        """Some pairs in the given order; no token is copied."""
        return PairSet(self.chosen.select(indices), self.rejected.select(indices))


@dataclass(frozen=True, eq=False)
class UnpairedSet:
    """Answers, each wanted or not: sample i is (answers[i], desirable[i]).

    An answer includes its prompt, and the labels are -100 on it.
    """

    answers: SampleSet
    desirable: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> tuple[Labelled, bool]:
        return self.answers[index], bool(self.desirable[index])

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, int64 [n]."""
        return self.answers.lengths()

    def select(self, indices: npt.NDArray[np.int64]) -> UnpairedSet:
        """Some samples in the given order; no token is copied."""
        return UnpairedSet(self.answers.select(indices), self.desirable[indices])


AnySet = SampleSet | PairSet | UnpairedSet
"""The samples of one data set, whatever its objective."""


def joined(sets: Sequence[AnySet]) -> AnySet:
    """Several sets of one kind as one, one behind the other."""
    if len(sets) == 1:
        return sets[0]
    if all(isinstance(one, PairSet) for one in sets):
        chosen, rejected = ([getattr(one, side) for one in sets] for side in ("chosen", "rejected"))
        return PairSet(_joined(chosen), _joined(rejected))
    if all(isinstance(one, UnpairedSet) for one in sets):
        answers = _joined([one.answers for one in sets if isinstance(one, UnpairedSet)])
        return UnpairedSet(answers, np.concatenate([one.desirable for one in sets if isinstance(one, UnpairedSet)]))
    return _joined([one for one in sets if isinstance(one, SampleSet)])


def _joined(sets: Sequence[SampleSet]) -> SampleSet:
    starts = np.cumsum([0, *(len(one.input_ids) for one in sets)])
    firsts = np.cumsum([0, *(len(one.offsets) - 1 for one in sets)])
    offsets = [one.offsets[:-1] + start for one, start in zip(sets, starts, strict=False)]
    orders = [
        (np.arange(len(one)) if one.order is None else one.order) + first
        for one, first in zip(sets, firsts, strict=False)
    ]
    return SampleSet(
        np.concatenate([one.input_ids for one in sets]),
        np.concatenate([one.labels for one in sets]),
        np.concatenate([*offsets, starts[-1:]]),
        np.concatenate(orders),
    )


def answer_start(labels: IdArray) -> int:
    """Where the answer of a sample starts: at its first label; all before it is the prompt."""
    return int(np.argmax(labels != IGNORE_INDEX))


def digest(*sets: AnySet) -> str:
    """What tells data sets apart: their tokens, labels, order and parts, as 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    sides: list[SampleSet] = []
    for part in sets:
        if isinstance(part, UnpairedSet):
            hashed.update(part.desirable.tobytes())
            sides.append(part.answers)
        else:
            sides += [part] if isinstance(part, SampleSet) else [part.chosen, part.rejected]
    for side in sides:
        order = np.arange(len(side)) if side.order is None else side.order
        for values in (side.input_ids, side.labels, side.offsets, order):
            hashed.update(len(values).to_bytes(8, "little"))
            hashed.update(values.data)
    return hashed.hexdigest()


Bytes = bytes | bytearray
Parcel = tuple[list[tuple[bytes, bytes, bytes]], bytes]
"""Samples on their way to another process: each side's token ids, labels and ends, and which answers are wanted."""


class Collector:
    """Cuts samples or pairs, counts what is lost, and keeps the rest in flat arrays.

    Attributes:
        truncated: Samples (or pairs) that were cut.
        dropped: Samples (or pairs) that were left out, by reason.
        longest: Tokens of the longest sequence that was kept, or that a prompt makes with another sample's answer
            where answers are wanted or not.
    """

    def __init__(self, cutoff_len: int) -> None:
        self._cutoff_len = cutoff_len
        self._sides: list[_Growing] = []
        self._desirable: list[bool] = []
        self._longest_prompt = self._longest_answer = 0
        self.truncated = 0
        self.dropped: Counter[str] = Counter()
        self.longest = 0

    def add(self, *sides: Labelled, desirable: bool | None = None) -> None:
        """Keep a sample (one side) or a pair (two), unless nothing can be learned from it.

        Args:
            sides: Token ids and labels.
            desirable: Whether the answer is wanted; None where the samples do not say so.
        """
        cut = [(ids[: self._cutoff_len], labels[: self._cutoff_len]) for ids, labels in sides]
        self.truncated += any(len(ids) > self._cutoff_len for ids, _ in sides)
        # Nothing predicts the first token, so its label is worth nothing.
        if any((labels[1:] == IGNORE_INDEX).all() for _, labels in cut):
            self.dropped[NO_ANSWER] += 1
        elif len(cut) == 2 and all(map(np.array_equal, *cut)):
            self.dropped[EQUAL_SIDES] += 1
        else:
            self._sides = self._sides or [_Growing() for _ in cut]
            for side, (ids, labels) in zip(self._sides, cut, strict=True):
                side.add(ids, labels)
                self.longest = max(self.longest, len(ids))
            if desirable is not None:
                self._desirable.append(desirable)
                self._count_mismatched(*cut[0])

    def take(self, least: int) -> Parcel | None:
        """What has been kept since the last call, if that is as many bytes; it is kept here no longer."""
        if sum(side.nbytes for side in self._sides) < max(1, least):
            return None
        taken = [side.take() for side in self._sides], bytes(self._desirable)
        self._desirable = []
        return taken

    def put(self, sides: Sequence[Sequence[Bytes]], desirable: Bytes) -> None:
        """Keep what another collector has given away by `take`."""
        self._sides = self._sides or [_Growing() for _ in sides]
        for side, parts in zip(self._sides, sides, strict=True):
            side.put(*parts)
        self._desirable += map(bool, desirable)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept here."""
        return sum(side.nbytes for side in self._sides)

    def _count_mismatched(self, ids: IdArray, labels: IdArray) -> None:
        start = answer_start(labels)
        self._longest_prompt = max(self._longest_prompt, start)
        self._longest_answer = max(self._longest_answer, len(ids) - start)
        self.longest = min(self._cutoff_len, self._longest_prompt + self._longest_answer)

    def collected(self) -> AnySet | None:
        """All that was kept, or None where that is nothing."""
        sets = [side.samples() for side in self._sides]
        if not sets:
            return None
        if self._desirable:
            return UnpairedSet(sets[0], np.array(self._desirable))
        return sets[0] if len(sets) == 1 else PairSet(*sets)


class _Growing:
    """One side of the samples, in arrays that grow in place."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._input_ids, self._labels, self._offsets = array("i"), array("i"), array("q", [0])

    def add(self, input_ids: IdArray, labels: IdArray) -> None:
        self._input_ids.frombytes(input_ids.tobytes())
        self._labels.frombytes(labels.tobytes())
        self._offsets.append(len(self._input_ids))

    @property
    def nbytes(self) -> int:
        return 4 * (len(self._input_ids) + len(self._labels)) + 8 * (len(self._offsets) - 1)

    def take(self) -> tuple[bytes, bytes, bytes]:
        """Token ids, labels and the ends of the samples among them, as bytes; nothing is left here."""
        taken = self._input_ids.tobytes(), self._labels.tobytes(), self._offsets[1:].tobytes()
        self._clear()
        return taken

    def put(self, input_ids: Bytes, labels: Bytes, ends: Bytes) -> None:
        """What another one has given away."""
        before = len(self._input_ids)
        self._input_ids.frombytes(input_ids)
        self._labels.frombytes(labels)
        self._offsets.frombytes((np.frombuffer(ends, dtype=np.int64) + before).tobytes())

    def samples(self) -> SampleSet:
        """The samples; they share the memory of the arrays."""
        return SampleSet(
            np.frombuffer(self._input_ids, dtype=np.int32),
            np.frombuffer(self._labels, dtype=np.int32),
            np.frombuffer(self._offsets, dtype=np.int64),
        )
