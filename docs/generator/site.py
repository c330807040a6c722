"""Stage the pages with what is generated, and let Zensical build the site from them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from batch_jobs.alerts import runbooks
from docs.generator import failure_modes, outward, reference

# A line of a page in whose place a generated block comes; invisible where Markdown is shown as is.
PLACE = re.compile(r"^<!-- generated: (?P<name>[a-z-]+) -->$", re.MULTILINE)
PAGES = ("index.md", "tutorial", "how-to", "reference", "explanation", "images")


def blocks(root: Path) -> dict[str, Callable[[], str]]:
    """What can be generated, by the name that a page calls it."""
    return {
        "commands": reference.commands,
        "run-commands": lambda: reference.run_commands(root),
        "settings": reference.settings,
        "api-settings": reference.api_settings,
        "watch-settings": reference.watch_settings,
        "kafka-settings": reference.kafka_settings,
        "alert-settings": reference.alert_settings,
        "model-fields": reference.model_fields,
        "gate-fields": reference.gate_fields,
        "limits-fields": reference.limits_fields,
        "monitor-fields": reference.monitor_fields,
        "performance-fields": reference.performance_fields,
        "placement-fields": reference.placement_fields,
        "feature-fields": reference.feature_fields,
        "http": outward.http,
        "read-contract": outward.read_contract,
        "contract-version": outward.contract_version,
        "slack-messages": outward.slack_messages,
        "slack-connections": outward.slack_connections,
        "runbooks": runbooks.text,
        "errors": reference.errors,
        "dags": lambda: reference.dags(root),
        "failure-modes": lambda: failure_modes.tables(root),
    }


def stage(root: Path, folder: Path) -> None:
    """Copy the pages and fill in what is generated.

    Args:
        root: the clone.
        folder: where to; what is there is replaced.

    Raises:
        KeyError: a page asks for a block that there is not.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    pages.mkdir(parents=True)
    shutil.copy(root / "docs" / "zensical.toml", folder)
    for name in PAGES:
        source = root / "docs" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, pages / name)
    known = blocks(root)
    for page in pages.rglob("*.md"):
        text = page.read_text("utf-8")
        filled = PLACE.sub(lambda found: known[found["name"]](), text)
        page.write_text(filled, "utf-8")


def build(root: Path, folder: Path) -> Path | None:
    """Build the site; None if a link leads nowhere, which Zensical has then told.

    Args:
        root: the clone.
        folder: where to build; the site is its folder `site`.
    """
    stage(root, folder)
    zensical = Path(sys.executable).with_name("zensical")
    command = [str(zensical), "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        return None
    return folder / "site"
