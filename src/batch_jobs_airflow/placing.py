"""A model's placement in the words of Airflow's operators."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from batch_jobs.placement import Placement

CONTAINER = "base"  # as the KubernetesExecutor calls the one of the task


def task_settings(placement: Placement) -> dict[str, Any]:
    """Arguments of an operator for where its task runs, and before whose."""
    return {
        "pool": placement.pool,
        "priority_weight": placement.priority,
        # By default Airflow adds up the weights of all that comes after a task.
        "weight_rule": "absolute",
        **({} if placement.queue is None else {"queue": placement.queue}),
        **_pod(placement),
    }


def _pod(placement: Placement) -> dict[str, Any]:
    """What the KubernetesExecutor is told, where it is installed; it takes no plain values."""
    given = {"cpu": placement.cpu, "memory": placement.memory}
    requests = {name: amount for name, amount in given.items() if amount is not None}
    if not requests or find_spec("kubernetes") is None:
        return {}
    client = import_module("kubernetes.client")
    resources = client.V1ResourceRequirements(requests=requests)
    container = client.V1Container(name=CONTAINER, resources=resources)
    pod = client.V1Pod(spec=client.V1PodSpec(containers=[container]))
    return {"executor_config": {"pod_override": pod}}
