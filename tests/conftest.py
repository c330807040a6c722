"""Fixtures that the tests share; Airflow gets a folder of its own before it is imported."""

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
_folder = tempfile.TemporaryDirectory(prefix="batch-jobs-airflow-")  # removed at exit
AIRFLOW_HOME = Path(_folder.name)

# Airflow reads these once, when it is first imported; no test may see what the user has set.
for name in list(os.environ):
    if name.startswith(("AIRFLOW_", "BATCH_JOBS_")):
        del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": str(AIRFLOW_HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(AIRFLOW_HOME / "plugins"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{AIRFLOW_HOME}/airflow.db",
    "PYTHONPATH": str(ROOT),
}
