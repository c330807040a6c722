"""The command for an Airflow that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batch_jobs.cli.output import tell
from batch_jobs.errors import ConfigurationError

NAME = "batch_serving.py"
# Airflow reads a file only if its text has the words "airflow" and "dag".
DAG_FILE = '''\
"""The Airflow DAGs of every model that batch-jobs serves; written by `batch-jobs dags`."""

from batch_jobs_airflow.all_dags import make_all_dags

make_all_dags()
'''
commands = typer.Typer()


@commands.command()
def dags(
    *,
    folder: Annotated[
        str | None, typer.Option(help="Airflow's DAGs folder, to save it in.")
    ] = None,
) -> None:
    """Print the one DAG file that an existing Airflow needs, or save it in its DAGs folder."""
    if folder is None:
        typer.echo(DAG_FILE, nl=False)
        return
    path = Path(folder) / NAME
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {folder}; give the DAGs folder of Airflow")
    path.write_text(DAG_FILE, "utf-8")
    tell({}, as_json=False, shown=f"wrote {path}")
