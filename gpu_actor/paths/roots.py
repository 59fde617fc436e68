"""Where jobs may read and write: below the allowed folders, and never where a system keeps its own files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gpu_actor.paths.urls import is_url, lies_below

_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys"),
    *("/usr/bin", "/usr/lib", "/usr/libexec", "/usr/sbin", "/var/lib", "/var/log", "/var/run", "/var/spool"),
    *("/Library", "/System", "/private/etc"),  # of macOS
)


def outside(path: str, roots: Sequence[str], *, list_roots: bool = True) -> str:
    """Why a path may not be used, once links are followed, in words; empty where it may.

    Below a root, whatever lies in a folder or file whose name begins with a dot (`.ssh`, `.netrc`) and in a folder of
    the system (`/etc`, `/proc`) is not allowed either, unless a root lies there itself.

    Args:
        path: Absolute, or a URL.
        roots: The allowed folders, absolute, or URLs; none allows every place.
        list_roots: Say which folders those are.
    """
    if not roots:
        return ""
    if is_url(path):
        if any(is_url(root) and lies_below(path, root) for root in roots):
            return ""
        return f"{path!r} is outside the allowed folders{_allowed(roots) if list_roots else ''}"
    roots = [root for root in roots if not is_url(root)]
    told = _allowed(roots) if list_roots else ""
    real = Path(os.path.realpath(path))
    leads = f"{path!r}" if str(real) == path else f"{path!r} leads to {real} and"
    around = [Path(root) for root in map(os.path.realpath, roots) if real.is_relative_to(root)]
    if not around:
        return f"{leads} is outside the allowed folders{told}"
    nearest = max(around, key=lambda root: len(root.parts))
    system = next((folder for folder in _SYSTEM if real.is_relative_to(folder)), None)
    if system is not None and not nearest.is_relative_to(system):
        return f"{leads} lies in {system}, which belongs to the system{told}"
    hidden = next((part for part in real.relative_to(nearest).parts if part.startswith(".")), None)
    if hidden is not None:
        return f"{leads} lies in {hidden}, a hidden name; give another place, or allow that one by itself"
    return ""


def _allowed(roots: Sequence[str]) -> str:
    return f"; allowed: below {', '.join(roots)} (others by `allowed_roots` in the cluster file)"


def default_roots(*storage: str) -> list[str]:
    """The folders that are allowed where nobody names any: the current one, the user's home, and the storage.

    Args:
        storage: Where Loray keeps what is its own.
    """
    here = [os.getcwd(), os.path.expanduser("~")]
    usable = [folder for folder in here if os.path.isabs(folder) and folder != os.sep]
    return list(dict.fromkeys([*usable, *storage]))
