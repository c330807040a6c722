"""What Prometheus is told: requests, how long they took, which versions answer, how fresh it is."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import Scope

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """The numbers of one server; routes are counted by their pattern, so that nobody adds more."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._kept: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._requests = Counter(
            "prediction_api_requests",
            "Requests by method, route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "prediction_api_request_seconds",
            "How long requests took.",
            ("route",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._warehouse = Gauge(
            "prediction_api_warehouse_up",
            "1 if the warehouse told just now how fresh the models are.",
            registry=self._registry,
        )
        self._age = Gauge(
            "prediction_api_age_seconds",
            "Time since fresh_until, up to which every due interval is published.",
            ("model",),
            registry=self._registry,
        )
        self._stale = Gauge(
            "prediction_api_stale",
            "1 if a due interval is later than the model's timeout allows.",
            ("model",),
            registry=self._registry,
        )
        self._incidents = Gauge(
            "prediction_api_incidents",
            "Incidents that last; those of no single model have an empty one.",
            ("model", "severity"),
            registry=self._registry,
        )
        self._champion = Gauge(
            "prediction_api_champion",
            "1 for the version that answers POST /predict.",
            ("model", "version"),
            registry=self._registry,
        )

    def saw(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; status 0 if it was never answered."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        key = (method, route, status)
        if key not in self._kept:  # to find them by their labels takes longer than to count
            requests = self._requests.labels(method, route, status or "none")
            self._kept[key] = (requests, self._seconds.labels(route))
        requests, took = self._kept[key]
        requests.inc()
        took.observe(seconds)

    def freshness(self, models: Iterable[tuple[str, float, bool | None]] | None) -> None:
        """Note age and staleness of each model; None if the warehouse does not tell."""
        self._warehouse.set(models is not None)
        self._age.clear()
        self._stale.clear()
        for name, age, stale in models or ():
            self._age.labels(name).set(age)
            if stale is not None:
                self._stale.labels(name).set(stale)

    def incidents(self, lasting: Iterable[tuple[str | None, str, int]]) -> None:
        """Note how many incidents last, by model and severity."""
        self._incidents.clear()
        for name, severity, count in lasting:
            self._incidents.labels(name or "", severity).set(count)

    def champions(self, versions: Iterable[tuple[str, str]]) -> None:
        """Note which versions answer."""
        self._champion.clear()
        for name, version in versions:
            self._champion.labels(name, version).set(1)

    def rendered(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return generate_latest(self._registry)
