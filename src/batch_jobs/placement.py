"""Placement: where Airflow runs a model's tasks, and before whose."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from batch_jobs.fields import Name

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity
CPU_PATTERN = re.compile(r"\d+(?:\.\d{1,3})?|\d+m")
MEMORY_PATTERN = re.compile(r"\d+(?:\.\d+)?(?:[kMGT]|[KMGT]i)")


def _as_text(number: object) -> object:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return str(number) if is_number else number


def _cpu(text: str) -> str:
    if not CPU_PATTERN.fullmatch(text) or not text.strip("0.m"):
        raise ValueError(f"{text!r} is no number of processors such as 2, 0.5 or '500m'")
    return text


def _memory(text: str) -> str:
    if not MEMORY_PATTERN.fullmatch(text) or not text.strip("0.kMGTi"):
        raise ValueError(f"{text!r} is no amount of memory such as '512Mi' or '2Gi'")
    return text


Cpu = Annotated[str, BeforeValidator(_as_text), AfterValidator(_cpu)]
Memory = Annotated[str, AfterValidator(_memory)]


class Placement(BaseModel):
    """Where Airflow runs the tasks of a model, and before whose.

    Attributes:
        pool: Airflow's pool whose slots the tasks take. It must exist, and should have two slots at
            least: Airflow lets tasks of a pool that is missing wait for ever.
        queue: with the CeleryExecutor, the queue that a worker must listen to (`airflow celery
            worker --queues`); by default Airflow's `[operators] default_queue`.
        priority: of tasks that wait for a slot, those with the higher number go first.
        cpu: with the KubernetesExecutor, the processors that each task's pod asks for, such as `2`
            or `500m`. What is given here replaces all resources of the pod template, limits too.
        memory: likewise the memory, such as `2Gi`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Name = "default_pool"
    queue: Name | None = None
    priority: int = Field(default=1, ge=1, le=10_000)
    cpu: Cpu | None = None
    memory: Memory | None = None
