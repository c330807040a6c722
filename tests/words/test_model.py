"""A BatchModel refuses what cannot work, when it is written and not when it runs at night."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from batch_jobs import BatchModel, Category, Gate, Monitor, Number, Placement
from batch_jobs.registry.versions import contract_of

QUERY = "SELECT entity_id, as_of, x FROM t WHERE as_of >= :start AND as_of < :end"


def _fields(**changed):
    right = {
        "description": "What is tested?",
        "features_query": QUERY,
        "labels_query": QUERY,
        "features": {"x": Number()},
        "estimator": object,
    }
    return right | changed


def _problems(**changed):
    with pytest.raises(ValidationError) as caught:
        BatchModel(**_fields(**changed))
    return {str(problem["loc"][0]): problem["msg"] for problem in caught.value.errors()}


def test_a_model_of_five_fields_is_complete():
    """Everything else has a default: ten-minute intervals, weekly training, the gate on."""
    model = BatchModel(**_fields())
    assert (model.schedule, model.train_schedule) == ("*/10 * * * *", "0 3 * * 1")
    assert (model.mode, model.parts, model.gate) == ("merge", 1, Gate())


def test_a_model_cannot_be_changed():
    """What was read from the file is what serves."""
    with pytest.raises(ValidationError, match="frozen"):
        BatchModel(**_fields()).parts = 2


@pytest.mark.parametrize("field", ["features_query", "labels_query"])
@pytest.mark.parametrize(
    ("sql", "missing"),
    [
        ("SELECT 1", ":start and :end"),
        ("SELECT 1 WHERE t >= :start", ":end"),
        ("SELECT :started, :end", ":start"),
        ("SELECT a::start, :end", ":start"),
    ],
)
def test_a_query_names_both_parameters(field, sql, missing):
    """The message says which of them is missing; a cast or a longer name is not one of them."""
    assert f"must use the bound parameter {missing}" in _problems(**{field: sql})[field]


def test_a_query_names_no_other_parameter():
    """A value that nobody will give is found when the file is read."""
    message = _problems(features_query=f"{QUERY} AND country = :country")["features_query"]
    assert "unknown parameter :country" in message


@pytest.mark.parametrize(
    "text", ["as_of::timestamptz", "strftime('%H:%M', as_of)", "'12:30'", r"'\:noon'"]
)
def test_casts_and_clock_times_are_not_taken_for_parameters(text):
    """Two colons are a cast, and a colon inside a time is part of it."""
    sql = QUERY.replace("x FROM", f"{text} AS x FROM")
    assert BatchModel(**_fields(features_query=sql)).features_query == sql


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("as_of >= :start::timestamptz", "as_of >= (:start)::timestamptz"),
        ("':start of all' < x", r"'\:start of all' < x"),
        ("-- not :now\n  x", "\n  x"),
        ("/* neither :now */ x", "x"),
        ("/*+ SeqScan(t) */ x", "/*+ SeqScan(t) */ x"),
        ("'-- no comment' = x", "'-- no comment' = x"),
        ('"odd -- name" = x', '"odd -- name" = x'),
        ("x = $$of :noon$$", r"x = $$of \:noon$$"),
        ("x = $a$of $$ :noon$a$", r"x = $a$of $$ \:noon$a$"),
        (r"x = E'it\'s :noon -- or so'", r"x = E'it\'s \:noon -- or so'"),
    ],
)
def test_a_query_is_taken_as_clients_of_the_database_take_it(written, read):
    """A cast of a parameter is one; what stands in a text or a comment is none."""
    sql = BatchModel(**_fields(features_query=f"{QUERY} AND {written}")).features_query
    assert sql.split(" AND ", 2)[-1].strip() == read.strip()


@pytest.mark.parametrize("end", ["; -- all of them", ";\n/* the end */\n", "  ;  ;"])
def test_a_comment_behind_the_semicolon_goes_with_it(end):
    """The query still stands inside another one."""
    assert BatchModel(**_fields(features_query=QUERY + end)).features_query == QUERY


def test_the_semicolon_at_the_end_of_a_query_goes():
    """So that the query can stand inside another one."""
    assert BatchModel(**_fields(features_query=f"\n {QUERY} ;\n")).features_query == QUERY


@pytest.mark.parametrize(
    "cron", ["@daily", "* * * *", "0 0 0 * * *", "61 * * * *", "", "0 0 30 2 *"]
)
def test_a_schedule_is_a_cron_of_five_fields_that_comes_round(cron):
    """Neither nicknames nor seconds nor the 30th of February."""
    assert "is not a cron expression" in _problems(schedule=cron)["schedule"]


@pytest.mark.parametrize("column", ["entity_id", "as_of", "label", "known_at"])
def test_a_feature_may_not_have_the_name_of_another_column(column):
    """The four columns with a meaning of their own are reserved."""
    assert f"may not be named {column}" in _problems(features={column: Number()})["features"]


@pytest.mark.parametrize("holdout", [timedelta(days=56), timedelta(days=57)])
def test_the_holdout_is_shorter_than_the_history(holdout):
    """Something must be left to learn from."""
    assert "shorter than history" in _problems(holdout=holdout)["holdout"]


def test_a_short_history_needs_a_shorter_holdout():
    """The default of one week is held against the history, too."""
    assert "shorter than history" in _problems(history=timedelta(days=7))["holdout"]


def test_only_rows_of_merge_mode_can_expire():
    """In replace mode each run replaces all of them."""
    month = timedelta(days=30)
    assert _problems(mode="replace", expire=month).keys() == {"expire"}
    assert BatchModel(**_fields(mode="merge", expire=month)).expire == month


@pytest.mark.parametrize(
    "field",
    [
        *("history", "holdout", "look_back", "keep", "expire", "timeout", "train_timeout"),
        "retrain_on_drift",
    ],
)
def test_a_span_of_time_is_longer_than_zero(field):
    """Neither zero nor negative."""
    assert "longer than zero" in _problems(**{field: timedelta(0)})[field]
    assert "longer than zero" in _problems(**{field: timedelta(days=-1)})[field]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("description", ""),
        ("features", {}),
        ("mode", "append"),
        ("parts", 0),
        ("parts", 257),
        ("chunk_rows", 0),
        ("train_samples", 1),
        ("estimator", "LogisticRegression"),
        ("shedule", "* * * * *"),
    ],
)
def test_values_out_of_range_and_unknown_fields_are_refused(field, wrong):
    """A slip of the pen is found at once."""
    assert list(_problems(**{field: wrong})) == [field]


def test_all_problems_are_told_at_once():
    """Nobody mends a file one error at a time."""
    wrong = {
        "features_query": "SELECT 1",
        "schedule": "often",
        "features": {"label": Number()},
        "holdout": timedelta(weeks=9),
        "parts": 0,
        "color": "red",
    }
    assert set(_problems(**wrong)) == set(wrong)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95])
def test_the_confidence_of_a_gate_lies_between_a_half_and_one(confidence):
    """A percentage is not a probability."""
    with pytest.raises(ValidationError, match="confidence"):
        Gate(confidence=confidence)


def test_a_person_has_longer_than_no_time_to_approve():
    """And by default nobody is asked."""
    assert Gate().approval is None
    with pytest.raises(ValidationError, match="longer than zero"):
        Gate(approval=timedelta(0))


def test_a_gate_knows_the_metrics_it_can_hold_to():
    """A metric that is never measured would refuse every challenger."""
    with pytest.raises(ValidationError, match="at_least"):
        Gate(at_least={"auc": 0.7})


def test_the_kind_of_a_feature_says_what_may_be_declared():
    """A category has no smallest value."""
    with pytest.raises(ValidationError, match="ge"):
        Category(ge=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": timedelta(hours=30)}, "whole number of days"),
        ({"window": timedelta(days=1)}, "two or more"),
        ({"limit": 0.1}, "greater than or equal to 0.5"),
        ({"ignore": ("x",), "slices": ("x",)}, "x cannot be watched and in `ignore` at once"),
    ],
)
def test_what_is_monitored_cannot_contradict_itself(options, told):
    """One clear error, when the file is read."""
    with pytest.raises(ValidationError, match=told):
        Monitor(**options)


def test_what_is_monitored_names_features():
    """A slice needs values that can be told apart, as a category has them."""
    assert (
        "ignore must name features, not y" in _problems(monitor=Monitor(ignore=("y",)))["monitor"]
    )
    told = _problems(monitor=Monitor(slices=("x",)))["monitor"]
    assert "slices must name features of kind Category, not x" in told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pool": ""}, "one line of text"),
        ({"pool": "x" * 257}, "at most 256 characters"),
        ({"queue": "a\nb"}, "one line of text"),
        ({"priority": 0}, "greater than or equal to 1"),
        ({"cpu": "two"}, "'two' is no number of processors such as 2, 0.5 or '500m'"),
        ({"cpu": 0}, "'0' is no number of processors"),
        ({"cpu": True}, "valid string"),
        ({"memory": "2 GB"}, "'2 GB' is no amount of memory such as '512Mi' or '2Gi'"),
        ({"memory": "0Gi"}, "'0Gi' is no amount of memory"),
        ({"cpus": 2}, "not permitted"),
    ],
)
def test_a_placement_that_no_executor_takes_is_refused(wrong, told):
    """When the file is read, and with what would be right."""
    assert told in _problems(placement=wrong)["placement"]


def test_where_a_model_runs_does_not_change_what_it_is_trained_for():
    """A version stays the champion of a model that moves to another machine."""
    moved = Placement(pool="large", queue="big", priority=9, cpu=0.5, memory="2Gi")
    here, there = BatchModel(**_fields()), BatchModel(**_fields(placement=moved))
    assert contract_of(here) == contract_of(there)
    assert (moved.cpu, here.placement) == ("0.5", Placement())
