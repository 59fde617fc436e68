"""Regular expressions of jobs, matched in a process of their own that ends when it takes too long.

`re` tries every way to match, which can be more ways than there is time for, and nothing in this process would run
meanwhile. No check of the text finds all such expressions, so what is limited are time and memory.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from gpu_actor.contract.errors import InvalidJobError, KilledError

Number = TypeVar("Number", int, float)
LONGEST = 1000  # characters
_CPU_SECONDS = 2  # for all expressions of one field; usual ones take milliseconds
_WALL_SECONDS = 60  # in which even a busy machine gives it those
_MEBIBYTES = 512  # usual expressions need none to speak of
# The package `regex` has a timeout, but unrolls `(.?){4000000}` and never stops in `(a?){2000000000}`; it also reads
# `x{e}`, `[[:alpha:]]` and `\w` otherwise than `re`, with which PEFT matches.
_START = "import sys; sys.path.append(sys.argv[1]); from gpu_actor.contract.match_process import main; main()"
_PACKAGES = Path(__file__).parents[2]

_Matches = tuple[str | None, ...]
"""One entry per name: None where the expression does not match, else the text of its group `index`, empty without."""


def check_expression(text: str) -> None:
    """Check that a text is a regular expression, and not too long.

    Raises:
        ValueError: It is not.
    """
    if len(text) > LONGEST:
        raise ValueError(f"is a regular expression of {len(text)} characters; allowed are {LONGEST}")
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None


def whole_matches(expression: str, names: Sequence[str], field: str) -> list[str]:
    """The names that an expression matches from beginning to end.

    Args:
        expression: A valid regular expression.
        names: Of modules.
        field: Of the job that holds the expression; errors name it.

    Raises:
        InvalidJobError: It takes too long, or too much memory; as for the functions below.
        KilledError: The process that matches it was killed.
    """
    (matches,) = _match_all(field, (expression,), names, whole=True)
    return _matching(names, matches)


def ending_matches(keys: Sequence[str], names: Sequence[str], field: str) -> dict[str, list[str]]:
    """For each key the names whose ends it fits, as PEFT matches its patterns."""
    if not keys:
        return {}
    matches = _match_all(field, [rf"(.*\.)?({key})$" for key in keys], names, shown=keys)
    return {key: _matching(names, of_key) for key, of_key in zip(keys, matches, strict=True)}


def pattern_values(
    patterns: Mapping[str, Number], names: Sequence[str], default: Number, field: str
) -> dict[str, Number]:
    """The value of each name: that of the first pattern that fits its end, or the default."""
    values = dict.fromkeys(names, default)
    for key, fitting in reversed(ending_matches(list(patterns), names, field).items()):
        values.update(dict.fromkeys(fitting, patterns[key]))
    return values


def layer_numbers(lists: Sequence[str], names: Sequence[str], field: str) -> dict[str, int | None]:
    """The number of each name's layer, which stands behind the name of a list of layers, as in `layers.3`.

    Args:
        lists: Names of lists of layers, or expressions for them; the first one that a name holds counts.
        names: Of modules.
        field: Of the job that holds the lists; errors name it.

    Returns:
        None for a name that holds none of the lists.
    """
    matches = _match_all(field, [rf"(?:^|.*?\.){one}\.(?P<index>\d+)\." for one in lists], names, shown=lists)
    first = [next((index for index in of_name if index is not None), None) for of_name in zip(*matches, strict=True)]
    return {name: None if index is None else int(index) for name, index in zip(names, first, strict=True)}


def _matching(names: Sequence[str], matches: _Matches) -> list[str]:
    return [name for name, match in zip(names, matches, strict=True) if match is not None]


def _match_all(
    field: str,
    expressions: Sequence[str],
    names: Sequence[str],
    *,
    whole: bool = False,
    shown: Sequence[str] | None = None,
) -> tuple[_Matches, ...]:
    """The matches of each expression; an error shows it as it stands in the job (`shown`)."""
    try:
        matches, problem = _run(tuple(expressions), tuple(names), whole)
    except KilledError as error:
        raise KilledError(f"{field}: {error}") from None
    if problem is not None:
        hostile = (shown or expressions)[len(matches)]
        raise InvalidJobError(f"{field}: {hostile!r} {problem}")
    return matches


@lru_cache(maxsize=256)
def _run(expressions: tuple[str, ...], names: tuple[str, ...], whole: bool) -> tuple[tuple[_Matches, ...], str | None]:
    """The matches up to the first expression that cannot be matched, and what is wrong with that one."""
    request: dict[str, object] = {
        "expressions": expressions,
        "names": names,
        "whole": whole,
        "seconds": _CPU_SECONDS,
        "bytes": _MEBIBYTES << 20,
    }
    matches: list[_Matches] = []
    for line in _answers(request).decode().splitlines():
        result = json.loads(line)
        if isinstance(result, str):
            return tuple(matches), f"is not a regular expression here: {result}"
        if result is None:
            return tuple(matches), _too_much(f"{_MEBIBYTES} MiB")
        matches.append(tuple(result))
    return tuple(matches), _too_much(f"{_CPU_SECONDS} seconds") if len(matches) < len(expressions) else None


def _answers(request: Mapping[str, object]) -> bytes:
    """What a process of its own answers, as far as it comes within its limits.

    Raises:
        KilledError: It was killed twice, or had no processor time.
    """
    command = [sys.executable, "-I", "-S", "-c", _START, str(_PACKAGES)]
    text = json.dumps(request).encode()
    for _ in range(2):
        try:
            run = subprocess.run(command, input=text, capture_output=True, timeout=_WALL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if run.returncode > 0:  # not ended for its time, which would be a negative number
            raise RuntimeError(f"match_process failed: {run.stderr.decode(errors='replace').strip()[-300:]}")
        if run.returncode != -signal.SIGKILL:  # none of its limits ends it so
            return run.stdout
    raise KilledError(
        "the process that matches regular expressions was killed, or had no processor time; most likely its machine "
        "has no memory left: try again"
    )


def _too_much(limit: str) -> str:
    return (
        f"takes more than {limit} to match the names of the base model's layers; repeat nothing inside of what is "
        f"repeated, or list the names"
    )
