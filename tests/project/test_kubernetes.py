"""deploy/kubernetes is what Kubernetes takes, and keeps the rules of a deployment."""

import re

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from batch_jobs.cli.main import app
from docs.generator import reference
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))
VALUES = yaml.safe_load((FOLDER / "airflow-values.yaml").read_text("utf-8"))
OBJECTS = {
    f"{found['kind']} {found['metadata']['name']}": found
    for name in KUSTOMIZATION["resources"]
    for found in yaml.safe_load_all((FOLDER / name).read_text("utf-8"))
}
DEPLOYMENTS = {name: found for name, found in OBJECTS.items() if found["kind"] == "Deployment"}
# The oldest release that is maintained when this is written, and the newest one that is known.
RELEASES = ("1.33", "1.37")


@pytest.fixture(params=DEPLOYMENTS)
def deployment(request):
    """Each Deployment in turn."""
    return DEPLOYMENTS[request.param]


@pytest.fixture
def pod(deployment):
    """The pod of each."""
    return deployment["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    """Its one container."""
    [only] = pod["containers"]
    return only


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", OBJECTS)
def test_kubernetes_takes_it(name, release):
    """By the schemas of its API, in which no field is unknown."""
    kubernetes_validate.validate(OBJECTS[name], release, strict=True)


def test_all_files_are_applied():
    """But the values of the chart, which is another's."""
    files = {path.name for path in FOLDER.glob("*.yaml")}
    assert files - {"kustomization.yaml", "airflow-values.yaml"} == set(KUSTOMIZATION["resources"])


def test_a_pod_gives_up_what_it_does_not_need(pod, container):
    """Nobody's user, a root that is read-only, no capability, no token of the cluster."""
    assert pod["automountServiceAccountToken"] is False
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (
        (True, 50000)
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_pod_may_write_where_it_must_and_no_more_than_there_is(pod, container):
    """The caches of numba, matplotlib and artifacts; memory is bounded, and so are the folders."""
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each["emptyDir"]["sizeLimit"] for each in pod["volumes"]}
    assert set(mounts) == {"/tmp", "/opt/cache"}
    assert set(mounts.values()) == set(volumes)
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}


def test_what_hangs_is_ended(container):
    """After it had time to start."""
    assert {"startupProbe", "livenessProbe"} <= set(container)


def test_who_serves_can_be_moved_one_by_one_and_grows_with_its_load():
    """Of two replicas at least, one always serves."""
    labels = OBJECTS["Deployment prediction-api"]["spec"]["selector"]["matchLabels"]
    assert (
        OBJECTS["PodDisruptionBudget prediction-api"]["spec"]["selector"]["matchLabels"] == labels
    )
    assert OBJECTS["Service prediction-api"]["spec"]["selector"] == labels
    grown = OBJECTS["HorizontalPodAutoscaler prediction-api"]["spec"]
    assert grown["minReplicas"] >= 2
    assert "replicas" not in OBJECTS["Deployment prediction-api"]["spec"]


def test_a_command_has_the_options_that_it_is_given(container):
    """Whatever these are called one day."""
    if "command" not in container:
        return
    program, verb, *options = container["command"]
    assert program == "batch-jobs"
    shown = CliRunner().invoke(app, [verb, "--help"], terminal_width=200).output
    assert [option for option in options if option.startswith("--") and option not in shown] == []


def test_each_setting_is_one_that_there_is():
    """In the Deployments, in the ConfigMap and in what the guide puts into secrets."""
    known = {
        *re.findall(r"`([A-Z][A-Z0-9_]+)`", reference.settings() + reference.api_settings()),
        *re.findall(r"`([A-Z][A-Z0-9_]+)`", reference.watch_settings()),
        *re.findall(r"`([A-Z][A-Z0-9_]+)`", reference.alert_settings()),
    }
    guide = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text("utf-8")
    named = set(OBJECTS["ConfigMap batch-jobs"]["data"])
    named |= {
        each["name"]
        for found in DEPLOYMENTS.values()
        for each in found["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    named |= set(re.findall(r"\b((?:BATCH_JOBS|PREDICTION_API)_[A-Z_]+)=", guide))
    assert named - known == set()


def test_no_secret_is_kept_here():
    """Only their names."""
    assert not any(found["kind"] == "Secret" for found in OBJECTS.values())
    text = "".join(path.read_text("utf-8") for path in FOLDER.glob("*.yaml"))
    assert not re.search(
        r"(?i)(password|secret|key)\w*: *[\"']?[A-Za-z0-9+/=_-]{20,}$", text, re.MULTILINE
    )


def test_images_are_those_that_the_project_builds():
    """Their tags are set in one place; Airflow's is the release that is locked."""
    used = {
        found["spec"]["template"]["spec"]["containers"][0]["image"]
        for found in DEPLOYMENTS.values()
    }
    assert used == {each["name"] for each in KUSTOMIZATION["images"]}
    new = {each["name"]: each for each in KUSTOMIZATION["images"]}["batch-jobs-airflow"]
    assert (VALUES["defaultAirflowRepository"], VALUES["defaultAirflowTag"]) == (
        (new["newName"], new["newTag"])
    )
    lock = (ROOT / "deploy" / "airflow.lock").read_text("utf-8")
    assert f"\napache-airflow=={VALUES['airflowVersion']} " in f"\n{lock}"
    assert "\napache-airflow-providers-cncf-kubernetes==" in lock
