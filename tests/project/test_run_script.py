"""`./run` is portable, tells what is wrong in one line, and stays inside the clone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def clone(tmp_path):
    """A folder with an awkward name that holds what `./run` reads, and nothing made yet."""
    folder = tmp_path / "my clone"
    folder.mkdir()
    for name in ("run", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, folder)
    return folder


@pytest.fixture
def programs(tmp_path):
    """A folder for a PATH without any Python; `programs(python3="…")` adds scripts to it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cat", "cksum", "dirname", "env", "mkdir", "readlink", "sed", "sh"):
        (folder / name).symlink_to(shutil.which(name))

    def add(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return {"PATH": str(folder), "HOME": str(tmp_path)}

    return add


def run(*command, **options):
    """The ended process of a command, with its output as text."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("shell", ["sh", *filter(shutil.which, ("dash", "bash"))])
def test_any_posix_shell_reads_it(shell):
    """No shell that is here finds a mistake in its grammar."""
    assert run(shell, "-n", ROOT / "run").returncode == 0


@pytest.mark.parametrize("words", [[], ["help"], ["--help"]])
def test_help_lists_every_command(words):
    """Without a command, or when asked, it tells what it can do."""
    answer = run(ROOT / "run", *words)
    assert answer.returncode == 0
    for command in ("demo", "api", "test", "bench", "airflow", "batch-jobs", "clean"):
        assert f"\n  {command} " in answer.stdout


@pytest.mark.parametrize("words", [["dmeo"], ["bench"], ["bench", "speed"]])
def test_what_does_not_exist_is_one_line(words):
    """A misspelled command, no benchmark or an unknown one is wrong usage."""
    answer = run(ROOT / "run", *words)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("scripts", "found"),
    [
        ({}, "no python3 was found"),
        ({"python3": 'case "$2" in *exit*) exit 1;; esac; echo 3.9'}, "python3 is 3.9"),
        ({"python3": 'case "$2" in *exit*) exit 1;; esac; echo 3.14'}, "python3 is 3.14"),
    ],
)
def test_a_missing_or_unfit_python_is_one_line(clone, programs, scripts, found):
    """It says which versions would do and what was found, and makes nothing."""
    answer = run(clone / "run", "demo", env=programs(**scripts))
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "3.11, 3.12 or 3.13" in answer.stderr
    assert found in answer.stderr
    assert not (clone / ".venv").exists()


def test_an_installation_is_not_made_anew_with_what_it_removes(clone, programs):
    """The Python of an activated .venv is the first one there is, and gone a moment later."""
    environ = programs(python3='case "$2" in *exit*) exit 1;; esac; echo 3.9')
    activated = clone / ".venv" / "bin"
    activated.mkdir(parents=True)
    shutil.copy2(clone.parent / "bin" / "python3", activated / "python3.13")
    (activated / "python3.13").write_text("#!/bin/sh\n")
    answer = run(clone / "run", "demo", env=environ | {"PATH": f"{activated}:{environ['PATH']}"})
    assert answer.returncode == 2
    assert "python3 is 3.9" in answer.stderr
    assert activated.exists()


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize("set_by_user", [{}, {"UV_SYSTEM_CERTS": "0"}])
def test_uv_trusts_whom_the_system_trusts(clone, programs, set_by_user, has_store):
    """Behind a company's proxy that signs for every host, as pip does; unless the user says no."""
    script, store = (clone / "run").read_text(), clone / "authorities"
    assert script.count(" /etc/ssl/certs/ca-certificates.crt ") == 1
    only = script.replace(" /etc/ssl/certs/ca-certificates.crt ", f" '{store}' ")
    for other in (
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ):
        assert only.count(other) == 1
        only = only.replace(other, "/no/such/file")
    (clone / "run").write_text(only)
    if has_store:
        store.write_text("of this machine")
    told = set_by_user.get("UV_SYSTEM_CERTS", "true" if has_store else "")
    uv = "#!/bin/sh\necho system-certs=$UV_SYSTEM_CERTS >&2; exit 1\n"
    (clone / "uv").write_text(uv)
    (clone / "uv").chmod(0o755)
    venv = 'mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp uv .venv/bin/uv'
    environ = programs(
        python3=f'case "$*" in "-m venv"*) {venv};; esac',
        **{name: f'exec {shutil.which(name)} "$@"' for name in ("cp", "rm")},
    )
    answer = run(clone / "run", "demo", env=environ | set_by_user)
    assert answer.returncode == 1
    assert f"system-certs={told}\n" in answer.stderr


def test_it_finds_its_clone_from_any_folder_through_a_link(clone, programs, tmp_path):
    """The clone is where the script is, not where the link or the caller is."""
    (tmp_path / "link").symlink_to(clone / "run")
    (clone / ".local").mkdir()
    answer = run(tmp_path / "link", "clean", cwd="/", env=programs(rm=f'{shutil.which("rm")} "$@"'))
    assert answer.stderr == f"==> Removing {clone}/.local\n"
    assert not (clone / ".local").exists()


def test_cheap_commands_write_nothing(clone, tmp_path):
    """Help, a mistake and cleaning an empty clone leave the clone and the home as they were."""
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(clone.rglob("*"))
    for words in (["help"], ["dmeo"], ["bench"], ["clean"]):
        run(clone / "run", *words, env={"PATH": os.environ["PATH"], "HOME": str(home)})
    assert sorted(clone.rglob("*")) == before
    assert list(home.iterdir()) == []
