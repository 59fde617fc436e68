"""The program of the process in which `expressions` matches a job's regular expressions: it may be ended at any time.

It imports little, so that it starts in milliseconds.
"""

from __future__ import annotations

import json
import re
import sys

from gpu_actor.contract.limits import Limits, confine


def main() -> None:
    """Read what to match from standard input as JSON; write one JSON line per expression as soon as it is done.

    A line holds one of these: a list with an entry per name, which is null where the expression does not match, else
    the text of its group `index`, empty without one; the text of an error; null, where memory did not suffice.
    """
    request = json.load(sys.stdin)
    confine(Limits(request["bytes"], request["seconds"]))
    match = re.fullmatch if request["whole"] else re.match
    for expression in request["expressions"]:
        result: list[str | None] | str | None
        try:
            matches = [match(expression, name) for name in request["names"]]
            result = [one and (one.groupdict().get("index") or "") for one in matches]
        except (re.error, RecursionError, OverflowError) as error:
            result = str(error)
        except MemoryError:
            result = None
        print(json.dumps(result), flush=True)
