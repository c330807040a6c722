"""What an app sees, what it saw at a past moment, and pruning up to a moment."""

from datetime import timedelta

from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.runs import retention
from tests.support.attempts import MIDNIGHT, ask


def now(warehouse, model="orders"):
    """What an app reads now: entity, score and run."""
    return ask(
        warehouse,
        """SELECT entity_id, score, run_id FROM current_predictions WHERE model = :model
           ORDER BY entity_id""",
        model=model,
    )


def then(warehouse, moment, model="orders"):
    """What the history says an app saw at a moment."""
    return ask(
        warehouse,
        """SELECT entity_id, score, run_id FROM prediction_history
           WHERE model = :model AND published_at <= :moment
             AND (superseded_at IS NULL OR superseded_at > :moment) ORDER BY entity_id""",
        model=model,
        moment=stored_time(moment),
    )


def latest(warehouse, model="orders"):
    """The moment from which on readers have seen what they see now."""
    ((published, superseded),) = ask(
        warehouse,
        "SELECT max(published_at), max(superseded_at) FROM prediction_runs WHERE model = :model",
        model=model,
    )
    return max(loaded_time(moment) for moment in (published, superseded) if moment)


def prune(warehouse, before=MIDNIGHT, expire=None, model="orders"):
    """Prune what was superseded before a moment, and let rows of so many minutes' age expire.

    Ages count from the end of the newest interval, which lies years before the publications of
    these tests.
    """
    ((end,),) = ask(
        warehouse, "SELECT interval_end FROM serving_heads WHERE model = :model", model=model
    )
    age = None if expire is None else timedelta(minutes=expire)
    return retention.prune(warehouse, model, loaded_time(end) - before, age)


def states(warehouse):
    """How the runs ended, in the order of their claims."""
    return [
        state for (state,) in ask(warehouse, "SELECT state FROM prediction_runs ORDER BY run_id")
    ]


def stored(warehouse):
    """How many predictions, superseded and rejected rows are stored."""
    tables = ("predictions", "superseded_rows", "rejected_rows")
    return tuple(ask(warehouse, f"SELECT count(*) FROM {table}")[0][0] for table in tables)
