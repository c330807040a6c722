"""The health check of a process of Airflow: `healthy.py COMPONENT`, with exit code 0 or 1.

The API server answers 200 even when a component is dead, so its JSON is read. Docker starts again
what ends, and not what hangs: what has been sick for five checks is ended here, and its container
begins anew. A component about which nobody answers is left alone, for it may well be at work.
"""

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

HEALTH = "http://api-server:8080/api/v2/monitor/health"
API_SERVER = "api-server"
PATIENCE = 5
SECONDS = 10
COUNT = Path("/tmp/sick")  # noqa: S108 - of this container alone, and new with it


def main() -> int:
    """Look once, and end what has been sick for long."""
    return 0 if check(sys.argv[1], HEALTH, COUNT, end_all) else 1


def check(component: str, address: str, count: Path, end: Callable[[], None]) -> bool:
    """Whether a component is well.

    Args:
        component: `scheduler`, `dag_processor` or `triggerer`; or `api-server`, which is well if it
            answers and reaches its database, and sick only if it does not answer.
        address: of the health that the API server tells.
        count: the file that keeps how many checks in a row found it sick.
        end: called once there are too many.
    """
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:  # noqa: S310 - our own
            told = json.load(answer)
    except (OSError, ValueError):
        sick, well = component == API_SERVER, False
    else:
        is_server = component == API_SERVER
        state = told.get("metadatabase" if is_server else component, {}).get("status")
        well = state == "healthy"
        sick = not well and not is_server
    found = _counted(count, sick=sick, well=well)
    if found >= PATIENCE:
        end()
    return well


def _counted(count: Path, *, sick: bool, well: bool) -> int:
    """How often in a row it was sick; what nobody could tell does not count."""
    before = int(count.read_text()) if count.exists() else 0
    now = 0 if well else before + sick
    count.write_text(str(now))
    return now if sick else 0


def end_all() -> None:
    """End all processes of this container but its first one, which ends with them."""
    Path("/proc/1/fd/2").write_text("healthy.py: sick for five checks; begin anew\n")
    os.kill(-1, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
