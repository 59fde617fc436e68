"""Regular expressions of jobs, matched in a process of their own that ends when it takes too long.

`re` tries every way to match, which can be more ways than there is time for, and nothing in this process would run
meanwhile. No check of the text finds all such expressions, so what is limited is the time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from gpu_actor.contract.errors import InvalidJobError

Number = TypeVar("Number", int, float)
LONGEST = 1000  # characters
_CPU_SECONDS = 2  # for all expressions of one field; usual ones take milliseconds
_WALL_SECONDS = 60  # the same, should the machine be too busy to give it those
_PROGRAM = Path(__file__).with_name("match_process.py")


def check_expression(text: str) -> None:
    """Whether a text is a regular expression at all.

    Raises:
        ValueError: It is none, or it is too long.
    """
    if len(text) > LONGEST:
        raise ValueError(f"is a regular expression of {len(text)} characters; allowed are {LONGEST}")
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None


def whole_matches(expression: str, names: Sequence[str], field: str) -> list[str]:
    """The names that an expression matches from beginning to end; errors name the job's `field`.

    Raises:
        InvalidJobError: It takes too long.
    """
    (found,) = _matches(field, (expression,), names, whole=True)
    return [name for name, match in zip(names, found, strict=True) if match is not None]


def ending_matches(keys: Sequence[str], names: Sequence[str], field: str) -> dict[str, list[str]]:
    """The names whose ends each key fits, as PEFT matches its patterns.

    Raises:
        InvalidJobError: That takes too long.
    """
    found = _matches(field, [rf"(.*\.)?({key})$" for key in keys], names, shown=keys) if keys else ()
    return {
        key: [name for name, match in zip(names, matches, strict=True) if match is not None]
        for key, matches in zip(keys, found, strict=True)
    }


def pattern_values(
    patterns: Mapping[str, Number], names: Sequence[str], default: Number, field: str
) -> dict[str, Number]:
    """The value of each name: that of the first pattern that fits its end.

    Raises:
        InvalidJobError: That takes too long.
    """
    values = dict.fromkeys(names, default)
    for key, fitting in reversed(ending_matches(list(patterns), names, field).items()):
        values.update(dict.fromkeys(fitting, patterns[key]))
    return values


def numbers_behind(lists: Sequence[str], names: Sequence[str], field: str) -> dict[str, int | None]:
    """The number that stands in each name behind one of the names of a list, as in `layers.3`; None without one.

    Raises:
        InvalidJobError: That takes too long.
    """
    found = _matches(field, [rf"(?:^|.*?\.){one}\.(?P<index>\d+)\." for one in lists], names, shown=lists)
    first = [next((match for match in matches if match is not None), None) for matches in zip(*found, strict=True)]
    return {name: None if index is None else int(index) for name, index in zip(names, first, strict=True)}


def _matches(
    field: str,
    expressions: Sequence[str],
    names: Sequence[str],
    *,
    whole: bool = False,
    shown: Sequence[str] | None = None,
) -> tuple[tuple[str | None, ...], ...]:
    """For each expression and name: None, or the text of the match's group `index`, empty without one."""
    found, problem = _run(tuple(expressions), tuple(names), whole)
    if problem is not None:
        slow = (shown or expressions)[len(found)]
        raise InvalidJobError(f"{field}: {slow!r} {problem}")
    return found


@lru_cache(maxsize=256)
def _run(
    expressions: tuple[str, ...], names: tuple[str, ...], whole: bool
) -> tuple[tuple[tuple[str | None, ...], ...], str | None]:
    """What is found up to the first expression that cannot be matched, and what is wrong with that one."""
    given = {"expressions": expressions, "names": names, "whole": whole, "seconds": _CPU_SECONDS}
    command = [sys.executable, "-I", "-S", str(_PROGRAM)]
    try:
        run = subprocess.run(command, input=json.dumps(given).encode(), capture_output=True, timeout=_WALL_SECONDS)
        said = run.stdout
        if run.returncode > 0:  # not ended for its time, which would be a negative number
            raise RuntimeError(f"{_PROGRAM.name} failed: {run.stderr.decode(errors='replace').strip()[-300:]}")
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
    found: list[tuple[str | None, ...]] = []
    for line in said.decode().splitlines():
        matches = json.loads(line)
        if isinstance(matches, str):
            return tuple(found), f"is not a regular expression here: {matches}"
        found.append(tuple(matches))
    if len(found) < len(expressions):
        return tuple(found), (
            f"takes more than {_CPU_SECONDS} seconds to match the names of the base model's layers; repeat nothing "
            f"inside of what is repeated, or list the names"
        )
    return tuple(found), None
