"""Every error that Loray raises on purpose: one tree, whose members are also the fitting built-in.

A message says what was wrong, the value, what is allowed, and what to do. `orchestrator` re-exports these.
"""

from __future__ import annotations


class LorayError(Exception):
    """Root of every error that Loray raises on purpose."""


class InvalidJobError(LorayError, ValueError):
    """A job file or job field cannot be used as it stands."""


class DataError(LorayError, ValueError):
    """A data set cannot be read or holds nothing to train on; the message names file and line."""


class UnfitDataError(DataError):
    """A data set as a whole is not what its job needs, so that no other record is worth a look."""


class NoAnswerError(DataError):
    """A record is whole but has a blank answer: it is left out and counted, and its data set goes on."""


class TooLongError(DataError):
    """A question leaves no room for an answer: the base model was made for fewer tokens."""


class BaseModelError(LorayError, ValueError):
    """A base model cannot be loaded, hooked or packed."""


class AdapterError(LorayError, ValueError):
    """An adapter does not fit its base model, or its files are damaged."""


class DamagedFileError(AdapterError):
    """A file that Loray wrote cannot be read, or is no longer what it was."""


class TrainingError(LorayError, RuntimeError):
    """The training of one adapter cannot go on (a loss that is not finite, say)."""


class OutOfMemoryError(LorayError, MemoryError):
    """A job needs more memory than the actor can give, even for its smallest possible batch."""


class KilledError(LorayError, RuntimeError):
    """A process that did a part of a job was killed, most likely because its machine has no memory left.

    That is no fault of the job, so it is worth another try.
    """


class JobNotFoundError(LorayError, LookupError):
    """No job has that id or name."""


class IllegalTransitionError(LorayError, ValueError):
    """A job cannot go from its state to the wanted one."""


class ClusterUnavailableError(LorayError, ConnectionError):
    """No running orchestrator answers at the address."""


class JobFailedError(LorayError, RuntimeError):
    """A job that was waited for ended FAILED or CANCELLED; the message holds its reason."""


class WaitTimeoutError(LorayError, TimeoutError):
    """A wait for a job ran past its time limit."""
