"""The operator that runs a command of `batch-jobs`."""

from __future__ import annotations

import shutil

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from batch_jobs.errors import FencedError, InputError
from batch_jobs_airflow.connections import connection_url


class CommandOperator(BashOperator):
    """Run `batch-jobs` in a process of its own, whose memory goes back to the system.

    The command in the log can be pasted into a shell; the warehouse's URL, which may hold a
    password, goes through the environment.
    """

    def execute(self, context: Context) -> None:
        """Run the command; its last line is the error's text if it fails."""
        environment = self.get_env(context)
        if url := connection_url():
            environment["BATCH_JOBS_WAREHOUSE"] = url
        result = self.subprocess_hook.run_command(
            [shutil.which("bash") or "bash", "-c", self.bash_command], env=environment
        )
        if result.exit_code == FencedError.exit_code:
            raise AirflowSkipException(result.output)
        if result.exit_code == InputError.exit_code:
            raise AirflowFailException(result.output)
        if result.exit_code != 0:
            raise AirflowException(f"exit code {result.exit_code}: {result.output}")
