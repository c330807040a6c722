"""docker-compose.yaml and the Dockerfile keep the rules of a safe deployment."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docker-compose.yaml").read_text("utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
AIRFLOW = sorted(set(SERVICES) - {"postgres", "watch"})
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
REQUIRED = set(re.findall(r"\$\{(\w+):\?", TEXT))
SECRET = re.compile(r"PASSWORD|SECRET|KEY|SQL_ALCHEMY_CONN$")


@pytest.fixture(params=sorted(SERVICES))
def service(request):
    """Each service in turn."""
    return SERVICES[request.param]


def test_every_process_of_airflow_is_a_service():
    """Nothing that Airflow 3 needs is missing."""
    assert AIRFLOW == ["api-server", "dag-processor", "init", "scheduler", "triggerer"]


def test_somebody_watches():
    """From outside of Airflow, which it asks as a user that there is."""
    watch = SERVICES["watch"]
    assert watch["command"] == ["bash", "-c", "exec batch-jobs watch"]
    assert watch["environment"]["BATCH_JOBS_AIRFLOW_URL"] == "http://api-server:8080"
    assert watch["environment"]["BATCH_JOBS_AIRFLOW_USER"] == "admin"


def test_services_give_up_what_they_do_not_need(service):
    """Read-only root, no capability, no way to new privileges, never privileged."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "network_mode", "pid"} & set(service)
    assert service.get("user") != "root"


def test_ports_are_for_this_machine_only(service):
    """A port without an address would be open to every network."""
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_no_secret_has_a_value_or_a_default(service):
    """Each secret is a required variable, so that compose fails without it."""
    for name, value in service["environment"].items():
        if SECRET.search(name) and not name.endswith("_FILE"):
            assert re.search(r"\$\{\w+:\?[^}]+}", value), f"{name} must be ${{VARIABLE:?message}}"


def test_services_come_back_after_a_crash(service):
    """Every service restarts; the one that ends does so only if it failed."""
    assert service["restart"] in ("unless-stopped", "on-failure:3")


def test_services_that_stay_have_a_health_check():
    """Airflow answers 200 when a component is dead, so the check reads its state."""
    for name in AIRFLOW:
        if name != "init":
            test = SERVICES[name]["healthcheck"]["test"]
            assert "/api/v2/monitor/health" in test[-1]
            assert '"status"' in test[-1]
    components = {SERVICES[name]["environment"].get("COMPONENT") for name in AIRFLOW}
    assert components == {None, "scheduler", "dag_processor", "triggerer"}


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_spells_out_its_database_driver(name):
    """A bare postgresql:// means another driver since SQLAlchemy 2.1."""
    url = SERVICES[name]["environment"]["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    assert url.startswith("postgresql+psycopg2://")


def test_volumes_are_named_and_declared(service):
    """Nothing of the host is mounted."""
    for volume in service["volumes"]:
        assert volume.split(":")[0] in COMPOSE["volumes"]


def test_images_are_pinned():
    """An upgrade is somebody's decision."""
    assert re.fullmatch(r"postgres:\d+(\.\d+)?", SERVICES["postgres"]["image"])
    assert re.search(r"^FROM apache/airflow:\S*3\.3\.2-python3\.11$", DOCKERFILE, re.MULTILINE)


def test_the_image_is_installed_from_the_lock_and_runs_without_root():
    """Packages come with hashes; the last user is airflow."""
    assert "--require-hashes -r /opt/batch-jobs/requirements.lock" in DOCKERFILE
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE)[-1] == "airflow"


def test_the_context_of_the_image_has_all_that_it_copies():
    """.dockerignore lets through what the Dockerfile copies, and nothing secret."""
    allowed = set(
        re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    )
    copied = {
        source
        for sources in re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in sources.split()
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_env_example_lists_every_required_variable_without_a_value():
    """Whoever copies it sees what to fill in, and can start with nothing of ours."""
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    listed = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]", line))
    assert listed == dict.fromkeys(REQUIRED, "")


def test_git_ignores_the_real_env_file():
    """Secrets do not get into a commit by accident."""
    answer = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, check=False)
    assert answer.returncode == 0
