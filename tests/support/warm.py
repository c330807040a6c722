"""What the fork server does before it forks: import, and run once, all that an attempt needs."""

import gc
import tempfile
from pathlib import Path

from batch_jobs.runs import claims
from tests.fault_models._rows import prepare

claims.LARGE = 1  # on PostgreSQL, a population gets a table of its own

with tempfile.TemporaryDirectory() as folder:
    prepare(f"sqlite:///{folder}/warehouse.db", Path(folder))

# A collection in a child would touch, and so copy, every page of what is here.
gc.collect()
gc.freeze()
