"""The source rows of the two models, and what a reader must see of them.

An interval is a tick: ten minutes of that number. The feature `x` of a row is 100 times the tick
plus the row's place, and a version answers `x` plus a shift of its own.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.registry import promotion
from batch_jobs.runs import jobs
from batch_jobs.settings import Settings
from batch_jobs.training import train

START = datetime(2024, 3, 1, tzinfo=UTC)
STEP = timedelta(minutes=10)
SHIFTS = (0, 10_000_000)
# Of a tick of the merge model: rows that every tick has, and rows that come again after 50 ticks.
SHARED, GROUP, GROUPS = 6, 5, 50
MEMBERS = 10  # of a tick of the replace model
SIZES = {"ticks": SHARED + GROUP, "population": MEMBERS}
REJECTED = {"ticks": 1, "population": 1}


def tick(number):
    """The interval of that number."""
    return Interval(START + number * STEP, START + (number + 1) * STEP)


def number_of(start):
    """The number of the tick that starts then: a time, or one as SQLite stores it."""
    at = datetime.fromisoformat(start) if isinstance(start, str) else start
    return (at - START) // STEP


def group(number):
    """The name that the own rows of a tick begin with."""
    return f"group-{number % GROUPS:02}"


def places(model, number):
    """`{entity: place}` of the rows of a tick that have a score."""
    if model == "population":
        return {f"member-{place:02}": place for place in range(MEMBERS)}
    own = {f"{group(number)}-{place}": place for place in range(GROUP)}
    return own | {f"shared-{place}": 50 + place for place in range(SHARED)}


def expected(model, number, shift=0):
    """`{entity: score}` of one tick."""
    return {key: 100 * number + place + shift for key, place in places(model, number).items()}


def make_source(settings, first, ticks):
    """Give the ticks from `first` on their rows."""
    rows = []
    for number in range(first, first + ticks):
        at = stored_time(START + number * STEP)
        known = stored_time(START + (number + 1) * STEP)
        for model in SIZES:
            found = {key: 100 * number + n for key, n in places(model, number).items()}
            if number >= 0:
                found[f"bad-{number % GROUPS:02}"] = None
            if model == "ticks" and number < 0:  # learnt from in one go, so no key may come twice
                found = {f"{key} of {number}": x for key, x in found.items()}
            rows += [
                {"model": model, "key": key, "at": at, "known": known, "x": x}
                for key, x in found.items()
            ]
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(
            text("INSERT INTO fault_rows VALUES (:model, :key, :at, :known, :x)"), rows
        )


def prepare(url, folder):
    """Settings of a deployment with both models trained twice, and `{version: shift}`.

    The first versions are the champions, the source has ten ticks, and tick 0 is published.
    """
    settings = Settings(
        warehouse=url, model_store=str(folder / "models"), models=("tests.fault_models",)
    )
    warehouse = Warehouse(url)
    warehouse.ensure_schema()
    with warehouse.write() as connection:
        server = connection.dialect.name == "postgresql"
        time, real = ("timestamptz", "double precision") if server else ("TEXT", "REAL")
        where = "public." if server else ""
        for statement in (
            f"""CREATE TABLE {where}fault_rows
                (model TEXT, entity_id TEXT, at {time}, known_at {time}, x {real})""",
            f"CREATE INDEX fault_rows_at ON {where}fault_rows (model, at)",
            f"CREATE TABLE {where}label_shift (shift {real})",
            f"INSERT INTO {where}label_shift VALUES (0)",
        ):
            connection.execute(text(statement))
    make_source(settings, -60, 70)
    versions = {}
    for shift in SHIFTS:
        with warehouse.write() as connection:
            connection.execute(text("UPDATE label_shift SET shift = :shift"), {"shift": shift})
        for model in SIZES:
            version = train.train(settings, model, START).version
            versions[version] = shift
            if shift == SHIFTS[0]:
                promotion.promote(settings, model, actor="tests", reason="first")
                jobs.predict(settings, model, tick(0))
    return settings, versions


def model_fields(model):
    """What the two model files share."""
    columns = f"FROM fault_rows WHERE model = '{model}' AND at >= :start AND at < :end"
    return {
        "features_query": f"SELECT entity_id, at AS as_of, x {columns}",
        "labels_query": "SELECT entity_id, at AS as_of, known_at, "
        f"x + (SELECT shift FROM label_shift) AS label {columns}",
        "history": timedelta(hours=8),
        "holdout": timedelta(hours=2),
        "chunk_rows": 4,
        "parts": 2,
    }


def estimator():
    """The unfitted estimator; it learns to add the shift."""
    from sklearn.linear_model import LinearRegression

    return LinearRegression()
