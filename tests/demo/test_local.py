"""Airflow on this machine: private secrets, one owner, clear refusals, nothing left behind."""

import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from textwrap import dedent

import psutil
import pytest

from demo import local
from demo.local import LocalAirflow, LocalAirflowError, RefusedError

STUBBORN = """
    import os, signal, sys, time
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
    os.write(1, b"%d\\n" % os.getpid())  # whole, whoever writes beside it
    time.sleep(600)
"""
FAKE_AIRFLOW = """
    import sys, time
    def main():
        print("this is", *sys.argv[1:], flush=True)
        if sys.argv[1] == "BROKEN":
            sys.exit(3)
        if sys.argv[1] != "db":
            time.sleep(600)
"""


@pytest.fixture
def free_port():
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def make_airflow(tmp_path, free_port):
    """Make a LocalAirflow that runs a quick stand-in for the package `airflow`."""
    made = []

    def make(broken="nothing"):
        package = tmp_path / "fake" / "airflow"
        for folder in (package, package / "api_fastapi", package / "cli" / "commands"):
            folder.mkdir(parents=True, exist_ok=True)
        (package / "executors").mkdir(exist_ok=True)
        (package / "executors" / "local_executor.py").touch()
        (package / "api_fastapi" / "app.py").touch()
        for name in ("api_server", "dag_processor", "scheduler", "triggerer"):
            (package / "cli" / "commands" / f"{name}_command.py").touch()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(dedent(FAKE_AIRFLOW).replace("BROKEN", broken))
        made.append(
            LocalAirflow(
                home=tmp_path / ".local" / "airflow",
                port=free_port,
                extra_env={"PYTHONPATH": str(tmp_path / "fake")},
            )
        )
        return made[-1]

    yield make
    for airflow in made:
        airflow.stop(patience=1)


@pytest.fixture
def start_stubborn():
    """Start a process, and its child in another session, that ignore every polite signal."""
    started = []

    def start(env):
        process = subprocess.Popen(
            [sys.executable, "-c", dedent(STUBBORN)],
            env=env,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        pids = [int(process.stdout.readline()) for _ in range(2)]
        return [psutil.Process(pid) for pid in pids]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def eventually(condition, seconds=30):
    """Wait for a condition; the test fails if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(processes):
    """The processes that still run."""
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_secrets_are_private_strong_and_made_once(tmp_path):
    """The second look finds the first one's secrets; each holds 256 bits or more."""
    local.render_config(local.ROOT, tmp_path, 8080)
    made = local.make_secrets(tmp_path)
    assert local.make_secrets(tmp_path) == made
    assert sorted(made) == ["admin_password", "api_secret_key", "fernet_key", "jwt_secret"]
    assert all(len(secret) * 6 >= 256 for secret in made.values())


def test_files_with_secrets_are_for_their_owner_only(tmp_path):
    """Secrets, configuration and login have mode 0600, in a folder with mode 0700."""
    home = tmp_path / "airflow"
    local.render_config(local.ROOT, home, 8080)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"secrets.json", "airflow.cfg"} < set(modes)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_percent_sign_in_the_path_is_taken_as_one(tmp_path):
    """Airflow finds none of its own defaults below such a path, so none of them is left to it."""
    home = tmp_path / "100% done"
    local.render_config(local.ROOT, home, 8080)
    environment = {"PATH": os.environ["PATH"], "AIRFLOW_HOME": str(home)}
    asked = """
        from airflow.configuration import conf
        print(conf.get("database", "sql_alchemy_conn"))
        for name in ("base_log_folder", "dag_processor_child_process_log_directory"):
            print(conf.get("logging", name))
    """
    told = subprocess.run(
        [sys.executable, "-c", dedent(asked)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.splitlines()[-3:] == [
        f"sqlite:///{home}/airflow.db",
        f"{home}/logs",
        f"{home}/logs/dag_processor",
    ]


def test_the_port_of_the_last_rendering_is_kept(tmp_path):
    """`./run airflow` beside a running demo must not change its port."""
    assert local.rendered_port(tmp_path) == local.DEFAULT_PORT
    local.render_config(local.ROOT, tmp_path, 8099)
    assert local.rendered_port(tmp_path) == 8099


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_refused_with_another_one_to_try(host, tmp_path):
    """It is found out before anything starts."""
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        airflow = LocalAirflow(home=tmp_path / "airflow", port=port)
        with pytest.raises(RefusedError, match=rf"port {port} .* --port \d+"):
            airflow.start()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("port", [-1, 65536])
def test_an_impossible_port_is_refused(port):
    """It is no port at all."""
    with pytest.raises(RefusedError, match="not between 1 and 65535"):
        local.require_free(port)


def test_one_airflow_a_home(tmp_path):
    """A second owner is refused; it is free again when the first one lets go."""
    first = local.lock(tmp_path)
    with pytest.raises(RefusedError, match="already running"):
        local.lock(tmp_path)
    first.close()
    local.lock(tmp_path).close()


def test_a_refused_airflow_leaves_the_running_one_alone(make_airflow):
    """The second one neither starts anything nor stops what the first one started."""
    first, second = make_airflow(), make_airflow()
    first.start()
    eventually((first.home / "pids.json").exists)
    with pytest.raises(RefusedError):
        second.start()
    second.stop()
    first.require_alive()
    assert psutil.pid_exists(first.pid("scheduler"))


def test_the_database_is_made_once_and_every_component_gets_a_session(make_airflow):
    """A second start skips `db migrate`; no component shares a group with the caller."""
    airflow = make_airflow()
    airflow.start()
    eventually((airflow.home / "pids.json").exists)
    assert (airflow.logs / "migrate.log").read_text() == "this is db migrate\n"
    pids = [airflow.pid(name) for name in local.COMPONENTS]
    eventually(lambda: [os.getsid(pid) for pid in pids] == pids)
    airflow.stop(patience=1)
    (airflow.logs / "migrate.log").unlink()
    (airflow.home / "pids.json").unlink()
    airflow.start()
    eventually((airflow.home / "pids.json").exists)
    assert not (airflow.logs / "migrate.log").exists()


@pytest.mark.parametrize("broken", ["scheduler", "db"])
def test_a_component_that_ends_is_named_with_the_end_of_its_log(make_airflow, broken):
    """Whoever waits for Airflow learns which process died, how, and what it said last."""
    airflow = make_airflow(broken=broken)
    airflow.start()
    with pytest.raises(
        LocalAirflowError, match=rf"airflow {broken}.* code 3[\s\S]*this is {broken}"
    ):
        airflow.wait_healthy(seconds=30)


def test_stop_ends_the_stubborn_and_their_children_in_other_sessions(make_airflow, start_stubborn):
    """What ignores the signal is killed, wherever it hid."""
    airflow = make_airflow()
    airflow.start()
    eventually((airflow.home / "pids.json").exists)
    components = [psutil.Process(airflow.pid(name)) for name in local.COMPONENTS]
    stubborn = start_stubborn(airflow.environment())
    assert len(alive([*components, *stubborn])) == 6
    airflow.stop(patience=1)
    assert alive([*components, *stubborn]) == []


def test_what_a_killed_owner_left_behind_is_ended_by_the_next(make_airflow, start_stubborn):
    """After SIGKILL of the demo its processes live on; the next start makes room."""
    airflow = make_airflow()
    left = start_stubborn(airflow.environment())
    airflow.start()
    assert alive(left) == []


@pytest.mark.parametrize(
    "door", [["demo.local", "render"], ["demo.api"], ["batch_jobs", "init"]], ids=" ".join
)
@pytest.mark.failure_mode("full-disk")
def test_a_disk_that_takes_nothing_is_told_in_one_line(tmp_path, door):
    """Whatever was to be written; there is no traceback to read through."""
    done = subprocess.run(
        [sys.executable, "-m", *door],
        env=os.environ
        | {
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "BATCH_JOBS_WAREHOUSE": f"sqlite:///{tmp_path}/warehouse.db",
            "BATCH_JOBS_MODEL_STORE": str(tmp_path / "models"),
        },
        cwd=local.ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {1, 2}
    [line] = done.stderr.splitlines()
    assert re.match(r"(run|error): .*(File too large|I/O error)", line)


def test_what_keeps_anything_from_being_written_is_found(tmp_path):
    """Also where the folder is yet to be made; nothing is left of the trial."""
    assert local.obstacle(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert local.obstacle(tmp_path / "file" / "b") == f"Not a directory: {tmp_path / 'file'}"


def test_signals_cannot_interrupt_the_stop():
    """A second Ctrl-C while it stops would leave the rest running."""
    with local._deaf():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_persons_own_airflow_settings_do_not_reach_the_processes(tmp_path, monkeypatch):
    """The demo must not migrate the database that somebody's shell points to."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql+psycopg2://prod")
    monkeypatch.setenv("AIRFLOW_CONFIG", "/etc/airflow.cfg")
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", "kept")
    environment = LocalAirflow(home=tmp_path).environment()
    assert not [name for name in environment if name.startswith(("AIRFLOW__", "AIRFLOW_CONFIG"))]
    assert environment["AIRFLOW_CONN_SLACK_WEBHOOK"] == "kept"
    assert environment["AIRFLOW_HOME"] == str(tmp_path)
