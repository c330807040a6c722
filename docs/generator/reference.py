"""Blocks of the reference, each generated from the code that it tells of."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from batch_jobs import errors as errors_
from batch_jobs.cli.main import app
from batch_jobs.model import BatchModel, Category, Gate, Limits, Number
from batch_jobs.monitor import Monitor, Performance
from batch_jobs.placement import Placement
from batch_jobs.settings import AlertSettings, KafkaSettings, Settings, WatchSettings
from docs.generator.text import REQUIRED, attributes, code, default, table
from prediction_api.config import Config

# The person who triggers a DAG, and Airflow itself, set these; no model file does.
SET_BY_THE_CATALOG = {"name", "file"}
# Their defaults depend on other settings; the page says how.
DEPENDS = {"answer", "hosts", "model_cache"}


def commands() -> str:
    """Every command of `batch-jobs`, with its arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = [
        table(
            ("command", "what it does"),
            [(f"[`{name}`](#{name})", one.get_short_help_str(300)) for name, one in _of(group)],
        )
    ]
    for name, command in _of(group):
        parts += [f"### {name}", (command.help or "").replace("\f", "").strip(), _usage(command)]
    return "\n\n".join(parts)


def _of(group: Any) -> list[tuple[str, Any]]:
    return list(group.commands.items())


def _usage(command: Any) -> str:
    rows = []
    for each in command.params:
        if each.param_type_name == "argument":
            name = each.name.upper()
            name = name if each.required else f"[{name}]"
        else:
            name = each.opts[0] + ("" if each.is_flag else f" {each.metavar or _kind(each)}")
        given = REQUIRED if each.required else default(each.default)
        rows.append((code(name), each.help or "", given))
    return table(("argument or option", "meaning", "default"), rows)


def _kind(option: Any) -> str:
    choices = getattr(option.type_descriptor, "choices", None)
    return "|".join(choices) if choices else option.name.upper()


def run_commands(root: Path) -> str:
    """What `./run help` says."""
    told = subprocess.run(
        ["/bin/sh", root / "run", "help"], capture_output=True, text=True, check=True
    )
    return f"```text\n{told.stdout.strip()}\n```"


def settings() -> str:
    """The variables of the library and its command line."""
    return _variables("BATCH_JOBS_", Settings)


def watch_settings() -> str:
    """The variables of the watch."""
    return _variables("BATCH_JOBS_", WatchSettings)


def kafka_settings() -> str:
    """The variable of Kafka."""
    return _variables("BATCH_JOBS_", KafkaSettings)


def alert_settings() -> str:
    """The variables of the alerts."""
    return _variables("BATCH_JOBS_", AlertSettings)


def api_settings() -> str:
    """The variables of the prediction API."""
    return _variables("PREDICTION_API_", Config, leave_out={"settings"})


def _variables(prefix: str, kind: type, leave_out: frozenset[str] | set[str] = frozenset()) -> str:
    said = attributes(kind)
    rows = [
        (code(prefix + name.upper()), said[name], "depends" if name in DEPENDS else default(given))
        for name, given in _fields(kind)
        if name not in leave_out
    ]
    return table(("variable", "meaning", "default"), rows)


def _fields(kind: Any) -> Iterator[tuple[str, Any]]:
    """Name and default of every field of a dataclass or of a model of pydantic."""
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            default = (
                REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
            )
            yield name, default
        return
    for each in dataclasses.fields(kind):
        if each.default is not dataclasses.MISSING:
            yield each.name, each.default
        elif each.default_factory is not dataclasses.MISSING:
            yield each.name, each.default_factory()
        else:
            yield each.name, REQUIRED


def model_fields() -> str:
    """Every field of a model file."""
    return _of_model(BatchModel)


def gate_fields() -> str:
    """Every field of a gate."""
    return _of_model(Gate)


def limits_fields() -> str:
    """Every field of the circuit breaker."""
    return _of_model(Limits)


def monitor_fields() -> str:
    """Every field of what is monitored."""
    return _of_model(Monitor)


def performance_fields() -> str:
    """Every field of how outcomes are judged."""
    return _of_model(Performance)


def placement_fields() -> str:
    """Every field of where a model's tasks run."""
    return _of_model(Placement)


def _of_model(kind: type[BaseModel]) -> str:
    said = attributes(kind)
    rows = [
        (code(name), said[name], default(given))
        for name, given in _fields(kind)
        if name not in SET_BY_THE_CATALOG
    ]
    return table(("field", "meaning", "default"), rows)


def feature_fields() -> str:
    """The kinds of feature, with what each may be given."""
    parts = []
    for kind in (Number, Category):
        given = ", ".join(f"{name}={value!r}" for name, value in _fields(kind) if name != "kind")
        parts.append((code(f"{kind.__name__}({given})"), kind.__doc__ or ""))
    return table(("feature", "meaning"), parts)


def errors() -> str:
    """The tree of errors, with the exit code of each."""
    return f"```text\n{(errors_.__doc__ or '').strip()}\n```"


def dags(root: Path) -> str:
    """What each DAG does, and what to do when it fails: its own words."""
    parts = []
    for path in sorted((root / "src" / "batch_jobs_airflow").glob("*_dag.py")):
        verb = path.stem.removesuffix("_dag")
        said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        parts += [f"### {verb}_&lt;model&gt; {{ #{verb} }}", said]
    return "\n\n".join(parts)
