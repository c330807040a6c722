"""`./run secrets`: write .env with a random value for each secret that has none.

It needs no more than Python, for it comes before anything is installed. What .env says already
stays, so that it can be run again after an upgrade; a weak secret is refused, and nothing written.
"""

import argparse
import base64
import os
import re
import secrets
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$")
SHORTEST = 24
FERNET = 32
SECRET = re.compile(r"_(PASSWORD|KEY|KEYS|SECRET)$")
PORTS = {"AIRFLOW_PORT": 8080, "API_PORT": 8000}


def main() -> int:
    """Write the file; 2 if something is wrong, which is told in one line each."""
    parser = argparse.ArgumentParser(prog="./run secrets", description=__doc__)
    parser.add_argument("--celery", action="store_true", help="run tasks by Celery's workers")
    parser.add_argument("--folder", type=Path, default=ROOT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    file = arguments.folder / ".env"
    kept = _values(file.read_text("utf-8")) if file.exists() else {}
    if problems := [*_weak(kept), *_taken(kept, is_new=not file.exists() or _is_down(file))]:
        sys.stderr.write("".join(f"secrets: {problem}\n" for problem in problems))
        return 2
    if arguments.celery:
        kept |= {"COMPOSE_PROFILES": "celery", "AIRFLOW_EXECUTOR": "CeleryExecutor"}
        kept.setdefault("AIRFLOW_PARALLELISM", "32")
    text = _filled((arguments.folder / ".env.example").read_text("utf-8"), kept)
    _write(file, text)
    sys.stdout.write(f"{file} has every secret; only you can read it, and git ignores it\n")
    return 0


def _values(text: str) -> dict[str, str]:
    """What a file of variables says."""
    found = (LINE.match(line) for line in text.splitlines())
    return {match[1]: match[2].strip() for match in found if match}


def _weak(kept: dict[str, str]) -> list[str]:
    """What is wrong with the secrets that there are."""
    problems = []
    for name, value in kept.items():
        if not SECRET.search(name) or not value:
            continue
        if name == "AIRFLOW_FERNET_KEY" and not _is_fernet(value):
            problems.append(
                f"{name} in .env is no Fernet key (32 bytes in URL-safe base64); remove its value, "
                f"and ./run secrets makes one, or write back the one that the connections in "
                f"Airflow's database were kept with"
            )
            continue
        for part in value.split(",") if name.endswith("KEYS") else [value]:
            if len(part) < SHORTEST or len(set(part)) < SHORTEST // 3:
                problems.append(
                    f"{name} in .env is too weak: it needs {SHORTEST} random characters; remove "
                    f"its value, and ./run secrets fills one in"
                )
            elif "PASSWORD" in name and not re.fullmatch(r"[\w-]+", part, re.ASCII):
                problems.append(
                    f"{name} in .env is part of a URL: only letters, digits, - and _ may be in it"
                )
    return problems


def _is_fernet(value: str) -> bool:
    """Whether it is one key, or several in the order of a rotation."""
    try:
        return all(len(base64.urlsafe_b64decode(part)) == FERNET for part in value.split(","))
    except ValueError:
        return False


def _is_down(file: Path) -> bool:
    """Whether Docker says that nothing of the stack runs, which would hold the ports itself."""
    command = ["docker", "compose", "--project-directory", str(file.parent), "ps", "--quiet"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return not done.stdout.strip()


def _taken(kept: dict[str, str], *, is_new: bool) -> list[str]:
    """Ports that somebody else listens on, before a start."""
    problems = []
    for name, usual in PORTS.items() if is_new else ():
        told = kept.get(name) or str(usual)
        port = int(told) if told.isdecimal() else 0
        if not 0 < port < 2**16:
            problems.append(f"{name}={told} in .env is no port: write a number from 1 to 65535")
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                problems.append(f"port {port} is taken: write {name}=another one into .env")
    return problems


def _filled(example: str, kept: dict[str, str]) -> str:
    """The example with what is kept, and with new secrets where there is none."""
    lines, seen = [], set()
    for line in example.splitlines():
        match = LINE.match(line)
        if match is None:
            lines.append(line)
            continue
        name, value = match[1], kept.get(match[1]) or match[2]
        seen.add(name)
        lines.append(f"{name}={value or _new(name)}")
    lines += [f"{name}={value}" for name, value in kept.items() if name not in seen]
    return "\n".join(lines) + "\n"


def _new(name: str) -> str:
    if name == "AIRFLOW_FERNET_KEY":
        return base64.urlsafe_b64encode(os.urandom(32)).decode()
    return secrets.token_hex(32)


def _write(file: Path, text: str) -> None:
    """Write it whole or not at all, readable by nobody else from the first byte on."""
    new = file.with_name(f".env.{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
    new.replace(file)


if __name__ == "__main__":
    sys.exit(main())
