"""The proof that the bundled flight model is worth serving, on data it could not have known."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from batch_jobs.catalog import load_model
from batch_jobs.database.transactions import bounds
from batch_jobs.interval import Interval
from batch_jobs.scoring.contract import check_features, check_labels
from batch_jobs.training.dataset import split_by_time
from batch_jobs.training.fit import fit

MODEL = load_model("flight_delay", ("batch_jobs.models",))
YEAR = Interval(datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC))
WEEK = timedelta(weeks=1)
# Every Monday 03:00 UTC, when training is due, from March to December.
MONDAYS = [datetime(2013, 3, 4, 3, tzinfo=UTC) + number * WEEK for number in range(44)]


@pytest.fixture(scope="module")
def year(flights_2013):
    """Features and labels of the whole year: the queries are additive, so it is cut by `as_of`."""

    def read(query):
        return pd.concat(flights_2013.stream(query, bounds(YEAR), 400_000))

    checked = check_features(MODEL, read(MODEL.features_query), YEAR)
    assert checked.rejected == []
    return checked.rows, check_labels(MODEL, read(MODEL.labels_query))


def _between(rows, start, end, column="as_of"):
    return rows[(rows[column] >= start) & (rows[column] < end)]


def _split(features, labels, monday):
    begin = monday - MODEL.history
    seen = _between(labels, begin, monday + WEEK, "known_at")  # the library leaves out what is new
    return split_by_time(MODEL, _between(features, begin, monday), seen, monday)


def _trained_weekly(features, labels):
    """What the library fits every Monday, each on one core."""
    splits = (_split(features, labels, monday) for monday in MONDAYS)
    return Parallel(n_jobs=2)(delayed(fit)(MODEL, split.fit) for split in splits)


def test_weekly_retrained_model_ranks_and_calibrates_the_delays_of_a_year(year, capsys):
    """Trained each Monday of March to December 2013, it predicts the week that follows."""
    features, labels = year

    weeks = [_between(features, monday, monday + WEEK) for monday in MONDAYS]
    scored = pd.concat(
        week[["entity_id"]].assign(probability=fitted.answers(fitted.inputs(week))[:, 1])
        for fitted, week in zip(_trained_weekly(features, labels), weeks, strict=True)
    ).merge(labels, on="entity_id")

    truth = scored["label"].to_numpy(dtype=np.int64)
    auc = roc_auc_score(truth, scored["probability"])
    brier = brier_score_loss(truth, scored["probability"])
    loss = log_loss(truth, scored["probability"])
    with capsys.disabled():
        print(f"\n{len(scored):,} flights: AUC {auc:.4f}, Brier {brier:.4f}, log-loss {loss:.4f}")  # noqa: T201
    assert auc >= 0.735
    assert brier <= 0.155
