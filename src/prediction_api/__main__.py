"""`prediction-api`, or `python -m prediction_api`: serve until told to stop, then end in order."""

from __future__ import annotations

import sys

from batch_jobs.errors import BatchJobsError
from batch_jobs.settings import let_threads_sleep
from prediction_api.config import Config

CONNECTIONS = 1000
GRACE_SECONDS = 10


def main() -> None:
    """Serve on the host and port of the environment; wrong settings are one line and exit 2."""
    let_threads_sleep()
    try:
        config = Config.from_environ()
    except BatchJobsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    serve(config)


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; requests that have begun are answered first."""
    import uvicorn

    from prediction_api.main import create_app

    uvicorn.run(
        create_app(config),
        host=config.host,
        port=config.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        proxy_headers=False,  # else anybody could give himself another address
        server_header=False,
        access_log=False,  # an entity's key may be personal; /metrics counts instead
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
