"""Airflow on this machine: four processes, one SQLite file, nothing outside one folder.

`airflow standalone` is not used: it leaves its children running on SIGTERM, and serves logs on
every network. The processes are forked from one that has imported Airflow, because importing it
four times takes half a minute on two cores.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import httpx
import psutil

from batch_jobs.redaction import first_line

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_PORT = 8080
ADMIN = "admin"
MARKER = "BATCH_JOBS_LOCAL_AIRFLOW"
BUSY_SECONDS = 300
ROOM = 64 * 1024  # what a disk that is not full has
COMPONENTS = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}


class LocalAirflowError(Exception):
    """Airflow could not be started, or one of its processes ended."""

    exit_code = 1


class RefusedError(LocalAirflowError):
    """Nothing was started: the port or the folder is in use, or an argument is wrong."""

    exit_code = 2


def obstacle(folder: Path) -> str | None:
    """Why nothing can be written to a folder, or to what it would be made in; None if it can."""
    while not folder.exists():
        folder = folder.parent
    try:
        with TemporaryFile(dir=folder) as probe:
            probe.write(bytes(ROOM))
    except OSError as error:
        return f"{error.strerror}: {folder}"
    return None


def one_line(error: Exception) -> str:
    """What the system or a database refused."""
    return first_line(getattr(error, "orig", None) or error)


def make_secrets(home: Path) -> dict[str, str]:
    """The secrets of this Airflow, made on first use and readable by their owner only."""
    path = home / "secrets.json"
    if not path.exists():
        made = {
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "jwt_secret": secrets.token_urlsafe(64),
            "api_secret_key": secrets.token_urlsafe(64),
            "admin_password": secrets.token_urlsafe(32),
        }
        _write_private(path, json.dumps(made))
    found: dict[str, str] = json.loads(path.read_text("utf-8"))
    return found


def render_config(root: Path, home: Path, port: int) -> Path:
    """Write `airflow.cfg` and the login of the UI from the template and the secrets."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    values = {"root": str(root), "home": str(home), "port": str(port), **make_secrets(home)}
    config = (root / "airflow.cfg.template").read_text("utf-8")
    settings = re.sub(
        r"^(?!#)(.*)@(\w+)@",
        lambda found: found[1] + values[found[2]].replace("%", "%%"),
        config,
        flags=re.MULTILINE,
    )
    _write_private(home / "airflow.cfg", settings)
    login = json.dumps({ADMIN: values["admin_password"]})
    _write_private(home / "simple_auth_manager_passwords.json.generated", login + "\n")
    return home / "airflow.cfg"


def rendered_port(home: Path) -> int:
    """The port of the last rendering; the default one if there was none."""
    with suppress(OSError):
        if found := re.search(
            r"^port = (\d+)$", (home / "airflow.cfg").read_text("utf-8"), re.MULTILINE
        ):
            return int(found[1])
    return DEFAULT_PORT


def require_free(port: int, option: str = "--port") -> None:
    """Check that a server can listen on the port.

    Args:
        port: on 127.0.0.1.
        option: with which another one is chosen.

    Raises:
        RefusedError: it cannot, with the reason.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not between 1 and 65535"
            raise RefusedError(
                f"port {port} cannot be used ({reason}); choose another one with {option}, "
                f"for example {option} {_some_free_port()}"
            ) from None


def lock(home: Path) -> IO[bytes]:
    """Take this Airflow for one process until the answer is closed or the process dies.

    Raises:
        RefusedError: another process has taken it.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = _open_private(home / "in-use.lock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RefusedError(f"an Airflow is already running on {home}; stop it first") from None
    return file


class LocalAirflow:
    """Scheduler, DAG processor, API server and triggerer, each in a session of its own.

    A context manager: entering starts them, leaving stops every process they started.

    Args:
        root: the clone whose DAGs and plugins run.
        home: `AIRFLOW_HOME`; the processes' own logs go to `logs` beside it.
        port: where the API server listens, on 127.0.0.1.
        extra_env: variables for the processes, such as `AIRFLOW_CONN_...`; they win.
    """

    def __init__(
        self,
        root: Path = ROOT,
        home: Path = ROOT / ".local" / "airflow",
        port: int = DEFAULT_PORT,
        extra_env: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.home, self.port = root, home, port
        self.logs = home.parent / "logs"
        self.url = f"http://127.0.0.1:{port}"
        self._extra_env = dict(extra_env or {})
        self._client = self._new_client()
        self._lock: IO[bytes] | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._started = datetime.now(UTC)
        self._warm = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def password(self) -> str:
        """The password of the user admin."""
        return make_secrets(self.home)["admin_password"]

    def environment(self) -> dict[str, str]:
        """The environment of the processes: a person's own Airflow settings do not reach them."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AIRFLOW__", "AIRFLOW_CONFIG"))
        }
        return {
            **inherited,
            "AIRFLOW_HOME": str(self.home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.root),
            "PYTHONUNBUFFERED": "1",
            # Tasks call the API server, which no proxy could reach.
            "NO_PROXY": f"127.0.0.1,localhost,{os.environ.get('NO_PROXY', '')}",
            # Without it, process titles would overwrite the marker that `stop` looks for.
            "SPT_NOENV": "1",
            MARKER: str(self.home),
            # Else matplotlib would keep its list of fonts in the user's home.
            "MPLCONFIGDIR": str(self.home / "matplotlib"),
            **self._extra_env,
        }

    def start(self) -> None:
        """Start the processes, which first make or update Airflow's database; does not wait.

        Raises:
            RefusedError: the port is taken or this Airflow already runs; nothing was started.
        """
        self._lock = lock(self.home)
        try:
            self._kill_leftovers()
            require_free(self.port)
            render_config(self.root, self.home, self.port)
            self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._started = datetime.now(UTC)
            with _open_private(self.logs / "start.log") as log:
                self._launcher = subprocess.Popen(
                    [sys.executable, "-P", __file__, "launch", self.home, self.logs],
                    cwd=self.root,
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=0o077,
                )
        except BaseException:
            self.stop()
            raise

    def pid(self, component: str) -> int:
        """The process of a component: scheduler, dag-processor, api-server or triggerer."""
        pids: dict[str, int] = json.loads((self.home / "pids.json").read_text("utf-8"))
        return pids[component]

    def require_alive(self) -> None:
        """Check that no process has ended.

        Raises:
            LocalAirflowError: one has; the message names it and ends with the end of its log.
        """
        if self._launcher is None or self._launcher.poll() is not None:
            raise LocalAirflowError(_end_of(self.logs / "start.log", 25))

    def wait_healthy(
        self, seconds: float = 180, progress: Callable[[Mapping[str, bool]], None] = lambda _: None
    ) -> None:
        """Wait until every process says that it works.

        Args:
            seconds: how long to wait.
            progress: told, about twice a second, which of them works.

        Raises:
            LocalAirflowError: one ended, or was not healthy in time.
        """
        deadline = time.monotonic() + seconds
        while not all((healthy := self.health()).values()):
            progress(healthy)
            self.require_alive()
            if time.monotonic() > deadline:
                late = ", ".join(name for name, well in healthy.items() if not well)
                raise LocalAirflowError(
                    f"not healthy after {seconds:.0f} s: {late}; see {self.logs}"
                )
            time.sleep(0.5)
        progress(healthy)

    def health(self) -> dict[str, bool]:
        """Which processes work; those of an Airflow that is no more are not counted."""
        try:
            answer = (
                self._client.get("/api/v2/monitor/health", timeout=30).raise_for_status().json()
            )
            if not self._warm:
                # The first call of a task would build this part of the server, and time out.
                self._client.get("/execution/health", timeout=60)
                self._warm = True
        except httpx.HTTPError:
            answer = {}
        wells = {"api-server": bool(answer)}
        for name in ("scheduler", "dag_processor", "triggerer"):
            state = answer.get(name) or {}
            beat = state.get(f"latest_{name}_heartbeat")
            wells[name.replace("_", "-")] = (
                state.get("status") == "healthy"
                and beat is not None
                and datetime.fromisoformat(beat) > self._started
            )
        return wells

    def api(self, method: str, path: str, json: Any = None) -> Any:
        """Call Airflow's REST API as admin.

        Args:
            method: `GET`, `POST`, `PATCH`, ...
            path: below `/api/v2`, such as `/dags`.
            json: the body.

        Returns:
            The JSON of the answer; None if it has no body.

        Raises:
            httpx.HTTPError: no answer, or one that tells of an error.
            LocalAirflowError: a process has ended.
        """
        self.require_alive()
        if "Authorization" not in self._client.headers:
            login = {"username": ADMIN, "password": self.password}
            token = self._client.post("/auth/token", json=login).raise_for_status().json()
            self._client.headers["Authorization"] = f"Bearer {token['access_token']}"
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            answer = self._client.request(method, f"/api/v2{path}", json=json)
            # With SQLite a call answers 500 (503 about backfills) after 5 seconds, with nothing
            # done, while a request of a task holds the write lock in the event loop that the call
            # blocks.
            busy = answer.status_code in {
                httpx.codes.INTERNAL_SERVER_ERROR,
                httpx.codes.SERVICE_UNAVAILABLE,
            }
            if not busy or time.monotonic() > deadline:
                answer.raise_for_status()
                return answer.json() if answer.content else None

    def _new_client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, trust_env=False)

    def stop(self, patience: float = 6) -> None:
        """End every process that was started and whatever those started.

        Signals are ignored meanwhile, so that an impatient second Ctrl-C orphans nothing.

        Args:
            patience: seconds to end by themselves in, before they are killed.
        """
        if self._lock is None:
            return  # nothing was started, and what runs on this home is another program's
        with _deaf():
            members = _members(self.home)
            for process in members:
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    process.send_signal(signal.SIGINT)
            psutil.wait_procs(members, timeout=patience)
            self._kill_leftovers()
            if self._launcher is not None:
                self._launcher.wait()
            self._launcher, self._warm = None, False
            self._client.close()
            self._client = self._new_client()
            self._lock.close()
            self._lock = None

    def _kill_leftovers(self) -> None:
        """Kill what still runs on this home; a killed parent's last children need another look."""
        while found := _members(self.home):
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=1)


def _members(home: Path) -> list[psutil.Process]:
    """The living processes that were started for this home, found by their environment."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARKER) == str(home):
                for one in (process, *process.children(recursive=True)):
                    if one.status() != psutil.STATUS_ZOMBIE:
                        found[one.pid] = one
    return list(found.values())


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore the signals that end a program; only a main thread can, and only it gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _some_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _open_private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb")


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it is there whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with _open_private(new) as file:
        file.write(text.encode())
    new.replace(path)


def _end_of(log: Path, lines: int) -> str:
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-lines:])


def launch(home: Path, logs: Path) -> None:
    """Make Airflow's database if need be, fork the processes, and end when one of them ends.

    The message on standard output tells which one, and the end of its log.
    """
    from airflow import __main__ as airflow

    done, wanted = home / "migrated", version("apache-airflow-core")
    migration = None
    if not (done.exists() and done.read_text("utf-8") == wanted):
        migration = _fork(airflow.main, "migrate", ("db", "migrate"), logs)
    for module in (
        "airflow.api_fastapi.app",
        "airflow.cli.commands.api_server_command",
        "airflow.cli.commands.dag_processor_command",
        "airflow.cli.commands.scheduler_command",
        "airflow.cli.commands.triggerer_command",
        "airflow.executors.local_executor",
    ):
        import_module(module)
    if migration is not None:
        if (code := os.waitstatus_to_exitcode(os.waitpid(migration, 0)[1])) != 0:
            sys.exit(_obituary("db migrate", code, logs / "migrate.log"))
        _write_private(done, wanted)
    pids = {name: _fork(airflow.main, name, words, logs) for name, words in COMPONENTS.items()}
    _write_private(home / "pids.json", json.dumps(pids))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # `stop` means the others; they are waited for
    ended, status = os.wait()
    name = next(name for name, pid in pids.items() if pid == ended)
    sys.exit(_obituary(name, os.waitstatus_to_exitcode(status), logs / f"{name}.log"))


def _fork(command: Callable[[], None], name: str, arguments: tuple[str, ...], logs: Path) -> int:
    """Run Airflow's command line in a child that leads a session of its own."""
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        os.setsid()
        with _open_private(logs / f"{name}.log") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = ["airflow", *arguments]
        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, not of an error
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _obituary(name: str, code: int, log: Path) -> str:
    return f"airflow {name} ended with code {code}; the end of {log}:\n{_end_of(log, 20)}"


def main(arguments: list[str]) -> int:
    """What `./run` asks: `render` writes the configuration, `idle` fails while an Airflow runs."""
    home = Path(os.environ.get("AIRFLOW_HOME", ROOT / ".local" / "airflow"))
    try:
        if arguments == ["render"]:
            render_config(ROOT, home, rendered_port(home))
        elif arguments == ["idle"] and home.exists():
            lock(home).close()
        elif arguments[:1] == ["launch"]:
            launch(*map(Path, arguments[1:]))
    except LocalAirflowError as error:
        print(f"run: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except OSError as error:
        print(f"run: {one_line(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
