"""The program of the process in which `expressions` matches a job's regular expressions: it may be ended at any time.

It imports nothing of Loray, so that it starts in milliseconds.
"""

from __future__ import annotations

import json
import re
import resource
import sys


def main() -> None:
    """Read what to match from standard input as JSON; write one JSON line per expression as soon as it is done.

    A line holds a list with an entry per name: null where the expression does not match, else the text of its group
    `index`, empty without one; or it holds the text of an error.
    """
    given = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"], given["seconds"] + 1))
    match = re.fullmatch if given["whole"] else re.match
    for expression in given["expressions"]:
        found: list[str | None] | str = []
        try:
            matches = [match(expression, name) for name in given["names"]]
            found = [one and (one.groupdict().get("index") or "") for one in matches]
        except (re.error, RecursionError, OverflowError) as error:
            found = str(error)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
