"""docker-compose.yaml, the images and their configuration keep the rules of a deployment."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.conftest import ROOT

TEXT = (ROOT / "docker-compose.yaml").read_text("utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
AIRFLOW = ("api-server", "dag-processor", "scheduler", "triggerer")
OURS = (*AIRFLOW, "init", "worker", "requests", "watch", "prediction-api")
DOCKERFILES = {
    name: (ROOT / "deploy" / f"{name}.Dockerfile").read_text("utf-8") for name in ("airflow", "api")
}
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
LISTED = dict(line.split("=", 1) for line in EXAMPLE.splitlines() if re.match(r"[A-Z]\w+=", line))
REQUIRED = set(re.findall(r"\$\{(\w+):\?", TEXT))
SECRET = re.compile(
    r"PASSWORD|SECRET|KEYS?$|SQL_ALCHEMY_CONN$|WAREHOUSE$|BROKER_URL|RESULT_BACKEND"
)
# Of the logins of deploy/postgres/databases.sh.
LOGIN = re.compile(r"//(\w+):\$\{(\w+):\?[^}]+\}@(\w+):")


@pytest.fixture(params=sorted(SERVICES))
def service(request):
    """Each service in turn."""
    return SERVICES[request.param]


def test_all_that_is_needed_is_a_service():
    """Airflow's processes, their workers, the API behind nginx, who answers and who watches."""
    assert {*OURS, "postgres", "redis", "nginx"} == set(SERVICES)


def test_only_celery_brings_workers_and_redis():
    """`local` and `celery` are the two ways to run tasks, which .env chooses between."""
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert {name for name, found in profiles.items() if found} == {"worker", "redis"}
    assert profiles["worker"] == profiles["redis"] == ["celery"]
    assert (LISTED["COMPOSE_PROFILES"], LISTED["AIRFLOW_EXECUTOR"]) == ("local", "LocalExecutor")


def test_services_give_up_what_they_do_not_need(service):
    """Read-only root, no capability, no way to new privileges, never privileged."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "network_mode", "pid"} & set(service)
    assert service.get("user") != "root"


def test_logs_cannot_fill_the_disk(service):
    """Docker keeps every line for ever if it is not told otherwise."""
    assert service["logging"]["options"] == {"max-size": "20m", "max-file": "5"}


def test_ports_are_for_this_machine_only(service):
    """A port without an address would be open to every network."""
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_no_secret_has_a_value_or_a_default(service):
    """Each secret is a required variable, so that compose fails without it."""
    for name, value in service.get("environment", {}).items():
        if SECRET.search(name) and not name.endswith("_FILE"):
            assert re.search(r"\$\{\w+:\?run ./run secrets}", value), f"{name} must be required"


def test_services_come_back_after_a_crash(service):
    """Every service restarts; the one that ends does so only if it failed."""
    assert service["restart"] in ("unless-stopped", "on-failure:3")


@pytest.mark.parametrize("name", AIRFLOW)
def test_the_health_of_airflow_is_read_from_what_it_says(name):
    """It answers 200 when a component is dead; deploy/healthy.py reads the state of each."""
    component = name if name == "api-server" else name.replace("-", "_")
    check = SERVICES[name]["healthcheck"]["test"]
    assert check == ["CMD", "python", "/opt/batch-jobs/healthy.py", component]


@pytest.mark.parametrize("name", OURS)
def test_each_of_our_services_tells_whether_it_is_well(name):
    """But the one that ends; those that turn by a file that they touch with each turn."""
    assert ("healthcheck" in SERVICES[name]) == (name != "init")
    if name in ("requests", "watch"):
        assert SERVICES[name]["command"][-2:] == ["--alive", "/tmp/alive"]
        assert "/tmp/alive" in SERVICES[name]["healthcheck"]["test"][-1]
        assert SERVICES[name]["init"] is True  # the first process of a container cannot be killed


@pytest.mark.parametrize("name", [*AIRFLOW, "init", "worker"])
def test_the_entry_point_of_the_image_asks_for_no_database(name):
    """A worker has none, and would end after twenty tries; the others are started in order."""
    assert SERVICES[name]["environment"]["CONNECTION_CHECK_MAX_COUNT"] == "0"


def test_services_start_when_what_they_need_is_healthy():
    """Roles and tables first; tasks and the triggerer once the API server answers."""
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert waits["init"] == {"postgres": {"condition": "service_healthy"}}
    for name in set(OURS) - {"init"}:
        assert waits[name]["init"] == {"condition": "service_completed_successfully"}
    for name in ("scheduler", "triggerer", "worker"):
        assert waits[name]["api-server"] == {"condition": "service_healthy"}
    assert waits["worker"]["redis"] == {"condition": "service_healthy"}
    assert waits["nginx"] == {"prediction-api": {"condition": "service_healthy"}}


def test_each_process_has_the_login_that_it_needs_and_no_other():
    """A worker knows neither the metadata database nor the key of the connections in it."""
    logins = {
        name: {
            login
            for value in service["environment"].values()
            for login, _, _ in LOGIN.findall(str(value))
        }
        for name, service in SERVICES.items()
        if name in OURS
    }
    assert logins == {
        **{name: {"airflow", "results", "warehouse_writer"} for name in AIRFLOW},
        "init": {"airflow", "results", "warehouse_owner"},
        "worker": {"results", "warehouse_writer"},
        "requests": {"warehouse_writer"},
        "watch": {"warehouse_writer"},
        "prediction-api": {"warehouse_requester"},
    }
    for name in ("worker", "requests", "watch", "prediction-api"):
        assert "AIRFLOW__CORE__FERNET_KEY" not in SERVICES[name]["environment"]
    for name in ("requests", "watch", "prediction-api"):
        assert "AIRFLOW__API_AUTH__JWT_SECRET" not in SERVICES[name]["environment"]


def test_each_login_is_made_with_the_password_that_is_used():
    """By the script that a new volume of PostgreSQL runs."""
    script = (ROOT / "deploy" / "postgres" / "databases.sh").read_text("utf-8")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    made = dict(re.findall(r"CREATE ROLE (\w+) LOGIN(?: CREATEROLE)? PASSWORD :'(\w+)'", script))
    passwords = dict(re.findall(r'--set (\w+)="\$(\w+)"', script))
    used = {login: password for login, password, host in LOGIN.findall(TEXT) if host == "postgres"}
    assert used.items() <= {login: passwords[name] for login, name in made.items()}.items()
    assert set(passwords.values()) <= set(SERVICES["postgres"]["environment"])


@pytest.mark.parametrize("name", [*AIRFLOW, "init"])
def test_airflow_spells_out_its_database_driver(name):
    """A bare postgresql:// means another driver since SQLAlchemy 2.1."""
    url = SERVICES[name]["environment"]["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    assert url.startswith("postgresql+psycopg2://")


def test_the_scheduler_outlives_redis():
    """What tasks came to is kept in PostgreSQL: with Redis, its restart ends the scheduler."""
    settings = SERVICES["worker"]["environment"]
    assert settings["AIRFLOW__CELERY__RESULT_BACKEND"].startswith("db+postgresql+psycopg2://")


def test_volumes_are_named_or_of_this_project(service):
    """Of the host only what is read: configuration, and a team's own models."""
    for volume in service.get("volumes", []):
        source, _, rest = re.sub(r"\$\{\w+:-([^}]+)}", r"\1", volume).partition(":")
        assert source in COMPOSE["volumes"] or rest.endswith(":ro")
        assert source in COMPOSE["volumes"] or (ROOT / source).exists()


def test_what_is_compiled_and_drawn_has_a_folder_that_can_be_written():
    """The root is read-only; without one, each process compiles anew."""
    for text in DOCKERFILES.values():
        assert re.search(r"NUMBA_CACHE_DIR=/opt/cache/\w+", text)
        assert re.search(r"MPLCONFIGDIR=/opt/cache/\w+", text)
    for name in OURS:
        mounted = {volume.partition(":")[2] for volume in SERVICES[name]["volumes"]}
        assert "/opt/cache" in mounted


def test_images_are_pinned():
    """An upgrade is somebody's decision."""
    for name in ("postgres", "redis", "nginx"):
        assert re.fullmatch(rf"\$\{{\w+:-{name}:\d+(\.\d+)+}}", SERVICES[name]["image"])
    airflow = re.search(r"^apache-airflow==(\S+)", _lock("airflow"), re.MULTILINE)[1]
    assert f"ARG AIRFLOW_IMAGE=apache/airflow:slim-{airflow}-python3.11\n" in DOCKERFILES["airflow"]
    assert "ARG PYTHON_IMAGE=python:3.11-slim-bookworm\n" in DOCKERFILES["api"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_installed_from_its_lock_and_runs_without_root(name):
    """Packages come with hashes; the last user is not root; nothing is fetched to build ours."""
    text = DOCKERFILES[name]
    assert f"--no-deps --require-hashes -r /opt/batch-jobs/{name}.lock" in text
    assert "--no-deps --no-build-isolation" in text
    assert re.findall(r"^USER (\w+)", text, re.MULTILINE)[-1] in ("airflow", "50000")


def _lock(name):
    return (ROOT / "deploy" / f"{name}.lock").read_text("utf-8")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_lock_of_an_image_is_part_of_requirements_lock(name):
    """The same versions and hashes; `poetry export --only main,build --extras …` makes it."""
    whole = set((ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", " ").splitlines())
    hashes = re.compile(r"^([\w.-]+)(?:\[.*?])?==(\S+).*?((?:--hash=\S+\s*)+)$")
    known = {match.group(1, 2): match[3].split() for match in map(hashes.match, whole) if match}
    for line in filter(str.strip, _lock(name).replace("\\\n", " ").splitlines()):
        match = hashes.match(line)
        assert known[match.group(1, 2)] == match[3].split(), line[:80]


def test_images_have_no_more_than_they_need():
    """Neither tests nor type checkers, nor Airflow beside the API; but what builds the wheel."""
    names = {
        name: set(re.findall(r"^([\w.-]+)(?:\[.*?])?==", _lock(name), re.MULTILINE))
        for name in DOCKERFILES
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    dev = {re.split(r"[ \[(]", each)[0] for each in project["dependency-groups"]["dev"]}
    needed = {"pyyaml"}  # by Airflow
    assert not (dev - needed) & (names["airflow"] | names["api"])
    assert "poetry-core" in names["airflow"] & names["api"]
    assert "apache-airflow" in names["airflow"]
    assert not [name for name in names["api"] if "airflow" in name]


def test_the_context_of_the_images_has_all_that_they_copy():
    """.dockerignore lets through what is copied, and nothing secret."""
    ignored = (ROOT / ".dockerignore").read_text("utf-8")
    allowed = set(re.findall(r"^!(\S+)$", ignored, re.MULTILINE))
    copied = {
        source
        for text in DOCKERFILES.values()
        for sources in re.findall(r"^COPY (?:--chown=\S+ )?(.+) \S+$", text, re.MULTILINE)
        for source in sources.split()
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_env_example_lists_every_required_variable_without_a_value():
    """`./run secrets` fills them in, so that nobody starts with a secret of ours."""
    assert {name for name, value in LISTED.items() if not value} == REQUIRED


def test_git_ignores_the_real_env_file():
    """Secrets do not get into a commit by accident."""
    answer = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, check=False)
    assert answer.returncode == 0


def test_nginx_asks_the_replica_with_the_fewest_connections_and_bounds_clients():
    """And passes on whom a client asked and who it is; what is pushed is not held back."""
    text = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
    assert text.count("{") == text.count("}")
    for wanted in (
        *("least_conn;", "server prediction-api:8000 resolve", "limit_req zone=requests"),
        *("limit_conn connections", "proxy_set_header Host $http_host;", "client_header_timeout"),
        *("proxy_set_header X-Forwarded-For $remote_addr;", "proxy_buffering off;"),
    ):
        assert wanted in text


# --- ./run secrets


@pytest.fixture
def secrets(tmp_path):
    """Write .env in an empty folder: `secrets(*arguments)` is the exit code and what was said."""
    (tmp_path / ".env.example").write_text(EXAMPLE)
    script = ROOT / "deploy" / "write_env.py"

    def write(*arguments):
        done = subprocess.run(
            [sys.executable, script, "--folder", tmp_path, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    write.file = tmp_path / ".env"
    return write


def _values(file):
    return dict(
        line.split("=", 1) for line in file.read_text().splitlines() if re.match(r"[A-Z]\w+=", line)
    )


def test_every_secret_is_random_and_only_the_owner_reads_it(secrets):
    """None is said aloud, no two are alike, and what is written once stays."""
    code, said = secrets()
    found = _values(secrets.file)
    values = [found[name] for name in REQUIRED]
    assert (code, len(set(values)), min(map(len, values))) == (0, len(REQUIRED), 44)
    assert secrets.file.stat().st_mode & 0o777 == 0o600
    assert not any(value in said for value in values)
    assert secrets("--celery")[0] == 0
    celery = {"COMPOSE_PROFILES": "celery", "AIRFLOW_EXECUTOR": "CeleryExecutor"}
    celery["AIRFLOW_PARALLELISM"] = "32"
    assert _values(secrets.file) == found | celery


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("REDIS_PASSWORD=hunter2", "REDIS_PASSWORD in .env is too weak"),
        (f"AIRFLOW_JWT_SECRET={'a' * 64}", "AIRFLOW_JWT_SECRET in .env is too weak"),
        ("POSTGRES_PASSWORD=p@ss/word:of-thirty-characters", "is part of a URL"),
        (f"AIRFLOW_FERNET_KEY={'0123456789abcdefghij' * 2}", "is no Fernet key"),
        ("PREDICTION_API_KEYS=0123456789abcdef0123456789abcdef,short", "PREDICTION_API_KEYS in"),
    ],
)
def test_a_weak_secret_is_refused_and_nothing_is_written(secrets, line, said):
    """The message has the name, never the value, and what to do."""
    secrets.file.write_text(f"{line}\n")
    code, told = secrets()
    assert code == 2
    assert said in told
    assert line.partition("=")[2] not in told
    assert secrets.file.read_text() == f"{line}\n"
