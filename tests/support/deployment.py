"""A deployment of the two models that faults are tried on, and what must hold of it."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from sqlalchemy import text

from batch_jobs.runs import jobs
from batch_jobs.settings import Settings
from tests.fault_models._rows import SIZES, expected, number_of, tick
from tests.support.postgres_server import PostgresServer
from tests.support.reader import Row, Watch, open_reader, wrong_in

# Rows of runs that will never be shown, in whatever table.
LEFTOVERS = """
    SELECT p.run_id, r.state, count(*) FROM predictions AS p
    LEFT JOIN prediction_runs AS r ON r.run_id = p.run_id
    WHERE r.state IS NULL OR r.state IN ('failed', 'staging')
    GROUP BY p.run_id, r.state"""
# A table that a run has for itself is no part of `predictions` before it is published.
LEFT_TABLES = """
    SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'predictions\\_r%'
    AND NOT EXISTS (SELECT 1 FROM prediction_runs AS r
                    WHERE 'predictions_r' || r.run_id = relname
                    AND r.state IN ('published', 'superseded'))"""
OLDER = """
    SELECT r.run_id, o.run_id FROM prediction_runs AS r
    JOIN prediction_runs AS o ON o.model = r.model AND o.interval_start = r.interval_start
     AND o.interval_end = r.interval_end AND o.token > r.token
    WHERE r.state = 'published' AND o.published_at IS NOT NULL"""
UNKNOWN_CLAIM = """
    SELECT r.run_id FROM prediction_runs AS r
    LEFT JOIN fences AS f ON f.model = r.model AND f.interval_start = r.interval_start
     AND f.interval_end = r.interval_end
    WHERE f.token IS NULL OR f.token < r.token"""
STILL_SHOWN = """
    SELECT entity_id, run_id FROM prediction_history
    WHERE model = :model AND superseded_at IS NULL ORDER BY entity_id"""
NOW = "SELECT entity_id, run_id FROM current_predictions WHERE model = :model ORDER BY entity_id"


@dataclass(frozen=True)
class Deployment:
    """Where the models are, and what their versions answer: `{version: shift}`.

    `server` is that of the database, if it has one.
    """

    settings: Settings
    versions: dict
    server: PostgresServer | None = None

    @property
    def name(self):
        """Of the database."""
        return self.url.partition(":")[0].partition("+")[0]

    @property
    def url(self):
        """Of the warehouse."""
        return self.settings.warehouse

    def at(self, url):
        """The same with the warehouse at another URL."""
        return replace(self, settings=replace(self.settings, warehouse=url))

    def hasty(self):
        """Settings with which PostgreSQL ends the session of a stopped client after 0.3 s."""
        option = "?options=-c idle_in_transaction_session_timeout=300ms"
        return replace(self.settings, warehouse=self.url + option * (self.server is not None))

    def crash(self):
        """End the server of the database at once, as a power failure does, and start it again."""
        self.close()
        self.server.crash()
        self.server.start()

    @cached_property
    def _watch(self):
        return Watch(self.versions)

    @cached_property
    def _connection(self):
        return open_reader(self.url)

    def close(self):
        """Close the connection of the reader, which opens another one if it is used again."""
        connection = self.__dict__.pop("_connection", None)
        if connection is not None:
            connection.close()

    def predict(self, model, number, **options):
        """Publish a tick from this process, without a fault."""
        return jobs.predict(self.settings, model, tick(number), parts=1, **options)

    def ask(self, sql, **values):
        """Rows of a query as tuples."""
        return [tuple(row) for row in self._connection.execute(text(sql), values)]

    def seen(self, model):
        """What an app reads now, `{entity: score}`; all the invariants are checked as well."""
        self._watch.look(self._connection)
        assert not self._watch.seen.violations, str(self._watch.seen)
        sql = "SELECT entity_id, score FROM current_predictions WHERE model = :model"
        return {key: round(score, 3) for key, score in self.ask(sql, model=model)}

    def versions_of(self, model):
        """The two versions of a model."""
        return [
            version
            for (version,) in self.ask(
                "SELECT version FROM model_versions WHERE model = :model", model=model
            )
        ]

    def states(self, model, number):
        """How the runs of a tick ended, in the order of their claims."""
        return [
            state
            for state, start in self.ask(
                "SELECT state, interval_start FROM prediction_runs WHERE model = :model "
                "ORDER BY run_id",
                model=model,
            )
            if number_of(start) == number
        ]

    def leftovers(self):
        """Rows and tables of runs that were given up."""
        tables = self.ask(LEFT_TABLES) if self.server else []
        return self.ask(LEFTOVERS) + tables

    def unsound(self):
        """All that is wrong with the whole ledger and every run that was ever published."""
        watch = Watch(self.versions)
        watch.look(self._connection)
        found = [str(watch.seen)] if watch.seen.violations else []
        found += [("older token", row) for row in self.ask(OLDER)]
        found += [("unknown claim", row) for row in self.ask(UNKNOWN_CLAIM)]
        for model in SIZES:
            now, history = self.ask(NOW, model=model), self.ask(STILL_SHOWN, model=model)
            if now != history:
                found.append(("history", sorted(set(now) ^ set(history))))
            for run, rows in self._published(model).items():
                kinds = [kind for kind, _ in wrong_in(model, rows, self.versions)]
                if kinds:
                    found.append(("run", run, Counter(kinds)))
        return found

    def _published(self, model):
        """The rows of each run of a model that readers can see or could see once."""
        sql = """
            SELECT p.entity_id, p.score, r.model_version, r.run_id, r.interval_start
            FROM predictions AS p JOIN prediction_runs AS r ON r.run_id = p.run_id
            WHERE r.model = :model AND r.state IN ('published', 'superseded')"""
        runs = {
            run: []
            for (run,) in self.ask(
                "SELECT run_id FROM prediction_runs WHERE model = :model "
                "AND state IN ('published', 'superseded')",
                model=model,
            )
        }
        for row in self.ask(sql, model=model):
            runs[row[3]].append(Row(*row))
        return runs


def shown(model, numbers, shift=0):
    """`{entity: score}` that an app reads when these ticks are published."""
    rows = {}
    for number in sorted(numbers):
        rows = (rows if model == "ticks" else {}) | expected(model, number, shift)
    return rows
