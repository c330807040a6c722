"""Where numba keeps what it has compiled, and what to say where it cannot.

It looks for a folder as https://numba.readthedocs.io/en/stable/developer/caching.html tells.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

UNKEPT = (
    "compiled trees cannot be kept on this machine, so each process compiles them anew, for some "
    "seconds: set NUMBA_CACHE_DIR to a folder that can be written"
)


def problem(environ: Mapping[str, str] = os.environ) -> str | None:
    """What is wrong with numba's folder here; None if nothing is, or there is no numba."""
    if find_spec("numba") is None:
        return None
    if chosen := environ.get("NUMBA_CACHE_DIR"):
        folders = [Path(chosen)]
    else:
        folders = [Path(__file__).parent / "__pycache__", Path("~/.cache/numba").expanduser()]
    return None if any(map(_can_be_written, folders)) else UNKEPT


def _can_be_written(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that there is, can be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)
