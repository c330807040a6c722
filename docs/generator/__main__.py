"""`./run docs`: build the site of the documentation, strictly; with --serve, show it."""

from __future__ import annotations

import argparse
import http.server
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from docs.generator.site import build

ROOT = Path(__file__).resolve().parent.parent.parent


def main(words: Sequence[str] | None = None) -> int:
    """Build; then serve on this machine until Ctrl-C, if asked to."""
    parser = argparse.ArgumentParser(prog="./run docs", description=__doc__, allow_abbrev=False)
    parser.add_argument("--serve", action="store_true", help="show the site on 127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="for --serve (default: 8001)")
    asked = parser.parse_args(words)
    site = build(ROOT, ROOT / ".local" / "docs")
    if site is None:
        return 1
    sys.stdout.write(f"built {os.path.relpath(site / 'index.html')}\n")
    if asked.serve:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
        with http.server.ThreadingHTTPServer(("127.0.0.1", asked.port), handler) as server:
            sys.stdout.write(f"http://127.0.0.1:{asked.port} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
