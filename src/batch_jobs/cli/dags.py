"""The command for an Airflow that is there already."""

from __future__ import annotations

import typer

# Airflow reads a file only if its text has the words "airflow" and "dag".
DAG_FILE = '''\
"""The Airflow DAGs of every model that batch-jobs serves; written by `batch-jobs dags`."""

from batch_jobs_airflow.all_dags import make_all_dags

make_all_dags()
'''
commands = typer.Typer()


@commands.command()
def dags() -> None:
    """Print the one DAG file that an existing Airflow needs; save it in its DAGs folder."""
    typer.echo(DAG_FILE, nl=False)
