"""A real PgBouncer before the PostgreSQL of the tests."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.support.faults import until
from tests.support.postgres_server import free_port

PROGRAM = "pgbouncer"


@contextmanager
def pgbouncer(server, mode="transaction", **settings):
    """Its port, on 127.0.0.1; `./run test` installs it as root on Debian.

    Args:
        server: the PostgreSQL behind it.
        mode: its `pool_mode`.
        settings: further ones of its file.
    """
    program = shutil.which(PROGRAM, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")
    assert program, "PgBouncer is tested as it is: install it (apt-get install pgbouncer)"
    with tempfile.TemporaryDirectory(prefix="batch-jobs-pooler-", dir=server.folder.parent) as made:
        folder, port = Path(made), free_port()
        given = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "plain",
            "auth_file": folder / "users",
            "pool_mode": mode,
            "default_pool_size": 3,  # fewer than clients, so that sessions change hands
            "server_round_robin": 1,
            **settings,
        }
        lines = [f"{name} = {value}" for name, value in given.items()]
        behind = f"* = host=127.0.0.1 port={server.port}"
        (folder / "ini").write_text("\n".join(["[databases]", behind, "[pgbouncer]", *lines]))
        (folder / "users").write_text(f'"postgres" "{server.password}"\n')
        user = {}
        if os.geteuid() == 0:  # PgBouncer refuses root
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (folder, *folder.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [program, str(folder / "ini")], stdout=log, stderr=log, cwd=folder, **user
            )
        try:
            until(lambda: _lets_in(server, port), "PgBouncer to let clients in")
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _lets_in(server, port):
    try:
        server.connect(port=port, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
