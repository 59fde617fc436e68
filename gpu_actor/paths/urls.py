"""Places that are no folder of this machine: which URLs there are, and which of them Loray takes."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

_LIBRARIES = {"s3": ("s3fs", "pip install loray[s3]"), "gs": ("gcsfs", "pip install gcsfs")}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_PART = r"[A-Za-z0-9_=+,-][A-Za-z0-9._=+,-]*"
_PLACE = re.compile(rf"[a-z0-9]+://{_PART}(?:/{_PART})+")
ALLOWED = "a folder, file:///FOLDER, s3://BUCKET/FOLDER, or gs://BUCKET/FOLDER"


def is_url(place: str) -> bool:
    """Whether a place is named by a URL, of whatever kind."""
    return bool(_URL.match(place))


def without_file_scheme(place: str) -> str:
    """The path that `file:///folder` means; any other place, shortened by slashes at its end if it is a URL."""
    if not is_url(place):
        return place
    parts = urlsplit(place)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost") and not (parts.query or parts.fragment):
        return os.path.normpath(unquote(parts.path))
    return place.rstrip("/")


def url_problem(url: str) -> str:
    """Why Loray cannot use a URL, in words that hold no secret; empty where it can."""
    scheme = url.partition("://")[0].lower()
    if "@" in url:
        return (
            "the URL holds credentials, which belong into the environment of the nodes (AWS_ACCESS_KEY_ID and so on) "
            f"and never into a file of jobs; allowed: {ALLOWED}"
        )
    if scheme == "memory":
        return f"{url!r} would live and die with one process, and nobody else would see it; allowed: {ALLOWED}"
    if scheme not in _LIBRARIES:
        return f"{url!r}: {scheme}:// is not supported; allowed: {ALLOWED}"
    if not _PLACE.fullmatch(url):
        return (
            f"{url!r} is no folder of a bucket; allowed: {scheme}://BUCKET/FOLDER of letters, digits and . _ = + , - "
            "(no part may begin with a dot)"
        )
    library, install = _LIBRARIES[scheme]
    return "" if find_spec(library) else f"{url!r} needs the library {library}: {install}"


def lies_below(url: str, root: str) -> bool:
    """Whether a URL is another one, or lies below it."""
    return url == root.rstrip("/") or url.startswith(root.rstrip("/") + "/")
