"""`prediction-api`, or `python -m prediction_api`: serve until told to stop, then end in order."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import BatchJobsError, ConfigurationError
from batch_jobs.settings import let_threads_sleep

if TYPE_CHECKING:
    from prediction_api.config import Config

FILES = 250  # beside clients' connections: the warehouse's, the libraries', what is read
GRACE_SECONDS = 10


def main() -> None:
    """Serve on the host and port of the environment; wrong settings are one line and exit 2."""
    let_threads_sleep()
    try:
        config = _config()
        require_address(config)
    except BatchJobsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    serve(config)


def _config() -> Config:
    """The environment's, where the extra of the server is installed."""
    try:
        import uvicorn  # noqa: F401

        import prediction_api.main  # noqa: F401
        from prediction_api.config import Config
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"prediction-api needs the package {error.name}; run `pip install 'batch-jobs[api]'`"
        ) from error
    return Config.from_environ()


def require_address(config: Config) -> None:
    """Find out before anything begins whether the server can listen.

    Raises:
        ConfigurationError: it cannot, with the reason.
    """
    import socket

    try:
        where = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(where[0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where[4])
            probe.listen()
    except OSError as error:
        raise ConfigurationError(
            f"nobody can listen on {config.host} port {config.port} ({error.strerror}); set "
            f"PREDICTION_API_PORT to a port that is free, or end what listens there"
        ) from None


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; requests that have begun are answered first."""
    import uvicorn

    from prediction_api.main import create_app

    _let_open(config.connections + FILES)
    uvicorn.run(create_app(config), **server_options(config))


def server_options(config: Config) -> dict[str, Any]:
    """How uvicorn serves the app."""
    from prediction_api.connections import KEEP_ALIVE_SECONDS, protocol_of

    return {
        "host": config.host,
        "port": config.port,
        "loop": "uvloop",
        "http": protocol_of(config),
        "ws": "none",
        "proxy_headers": False,  # else anybody could give himself another address
        "server_header": False,
        "access_log": False,  # an entity's key may be personal; /metrics counts instead
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": GRACE_SECONDS,
    }


def _let_open(files: int) -> None:
    """Let this process have so many files open, connections among them, if the system lets it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        most = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


if __name__ == "__main__":
    main()
