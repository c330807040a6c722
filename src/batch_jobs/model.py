"""BatchModel: what to read, what to predict, how to learn, when to run, how good is good enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from batch_jobs.fields import Cron, Owner, Query, Span, Tag, Written
from batch_jobs.monitor import Monitor
from batch_jobs.placement import Placement

RESERVED_COLUMNS = ("entity_id", "as_of", "label", "known_at")
NAME_PATTERN = re.compile(r"^[a-z][a-z0-9_]{0,62}$")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Number(_Frozen):
    """A numeric feature; the estimator sees float64, and NaN where the value is NULL."""

    kind: Literal["number"] = "number"
    ge: float | None = None
    le: float | None = None
    nullable: bool = True


class Category(_Frozen):
    """A text feature of few values; the estimator sees a pandas category."""

    kind: Literal["category"] = "category"
    one_of: tuple[str, ...] | None = None
    nullable: bool = True


Feature = Annotated[Number | Category, Field(discriminator="kind")]

Metric = Literal["roc_auc", "log_loss", "brier", "accuracy", "calibration_error", "mae", "rmse"]


Rule = Literal["non_inferiority", "significant_gain", "always"]


class Gate(_Frozen):
    """The rule by which a challenger replaces the champion.

    The challenger is promoted unless it is shown to be worse: challenger, champion and a constant
    baseline are scored on the same hold-out rows, and the loss difference is bootstrapped by day.

    Attributes:
        rule: `non_inferiority` promotes unless shown worse than the champion, `significant_gain`
            only if shown better, `always` whatever the comparisons say; `at_least` and `at_most`
            hold under each.
        calibration: how far probabilities may be from what then happens (`calibration_error`,
            less what chance brings), unless the champion is further off on the same rows; None does
            not look.
        slices: categories within which, too, the challenger may not be shown worse than the
            champion, at each value with `min_rows` rows.
        confidence: how sure "shown to be worse" must be, in (0.5, 1).
        min_rows: fewest labelled hold-out rows a evaluation may rest on.
        at_least: metrics that the challenger must reach, e.g. `{"roc_auc": 0.65}`.
        at_most: metrics that the challenger may not exceed, e.g. `{"brier": 0.2}`.
        approval: for how long a challenger that the gate lets serve waits in Airflow for a person
            to approve it; the champion stays if nobody does. By default nobody is asked.
    """

    rule: Rule = "non_inferiority"
    calibration: float | None = Field(default=0.1, gt=0, le=1)
    slices: tuple[str, ...] = ()
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_rows: int = Field(default=200, ge=1)
    at_least: Mapping[Metric, float] = Field(default_factory=dict)
    at_most: Mapping[Metric, float] = Field(default_factory=dict)
    approval: Span | None = None


class Limits(_Frozen):
    """The circuit breaker: what a complete run must not look like to be published.

    Readers keep the last good predictions instead, and the error says what to do. A limit trips
    only where chance alone does not explain it.

    Attributes:
        rejected: share of the rows read that may be rejected.
        population: in `replace` mode, how much smaller and larger than the median of the last five
            runs the population may be.
        surge: in `merge` mode, how many times as many rows an interval may have as the fullest span
            of its length in the last four weeks.
        silence: in `merge` mode, for how long the source may give no row before it is taken for
            dead; by default twice the longest silence of the last four weeks, but never less than
            one interval, nor than its rate of rows brings by chance once a year. Shorter silences
            are published as empty intervals.
        constant_scores: whether a hundred rows and more may all get the same score.
    """

    rejected: float = Field(default=0.25, ge=0, le=1)
    population: tuple[float, float] = (0.5, 2.0)
    surge: float = Field(default=10, gt=1)
    silence: Span | None = None
    constant_scores: bool = False


class BatchModel(_Frozen):
    """One model served in batch.

    A model file assigns one of these to `model`; the file's name is the model's name.

    Attributes:
        description: one sentence for people, shown in Airflow's UI.
        features_query: SQL with `:start` and `:end`; returns `entity_id` (unique: text, a whole
            number or a UUID), `as_of` (when the row could be scored) and the features, for rows
            whose `as_of` lies in `[start, end)`. Uses nothing that was not known at
            `as_of`, and is additive: a long interval returns exactly the union of its parts.
        labels_query: SQL with `:start` and `:end` over the same `as_of`; returns `entity_id`,
            `label` and `known_at` (when the outcome became known), and in `replace` mode `as_of`.
        features: name and kind of every feature, in the order the estimator sees them.
        estimator: function that returns an unfitted scikit-learn estimator. Heavy imports
            belong inside it: Airflow reads this file every 30 seconds.
        positive: of two classes, the text of the one whose probability is the score, such as
            `churned`; by default the one that sorts last: 1 of 0 and 1.
        mode: `merge` if a run's rows join the current predictions by key, `replace` if a run
            rescores the whole population and becomes the current set.
        schedule: cron (UTC) whose ticks bound the intervals to score.
        train_schedule: cron (UTC) of training.
        retrain_on_drift: whether training starts, besides, when monitoring says that the model has
            drifted, and how much older than that the newest version's data must be: what was
            trained within this span is not trained again. By default it starts by the cron only.
        history: how far back training reads.
        holdout: the newest part of the history, kept from the fit and used to evaluate.
        train_samples: in `replace` mode, how many snapshots of the population training reads.
        look_back: how old an interval that is unpublished, or got late rows, may be and still be
            published by the next run.
        chunk_rows: rows held in memory at once while scoring.
        parts: how many mapped tasks share the scoring of one interval.
        gate: how good is good enough.
        limits: how wrong a run may look and still be published.
        monitor: what is watched of what was published, and when it is told.
        rescore_late: in `merge` mode, whether each run looks for rows that came late for intervals
            published within the look-back, and scores those intervals again; it costs one more
            reading of the look-back.
        keep: how long what readers no longer see stays readable: in `prediction_history`, and by
            the run_id that a reader holds on to. Counted back from the end of the newest published
            interval, so that a model that has stopped publishing loses nothing.
        expire: in `merge` mode, the age at which rows leave `current_predictions` though nothing
            newer has come for their keys, counted likewise by their interval; then `keep` begins.
            By default they stay for ever, and so does every run that has one of them.
        keep_versions: how many trained versions stay in the model store, the newest ones; and how
            many of those that served last. What has served or scored within `keep` stays, too.
        title: what is predicted, as a page for people is headed; by default the model's name.
        labels: words for classes, such as `{"1": "late"}`, for the same page.
        owner: who answers for the model, shown in Airflow's UI.
        tags: further tags in Airflow's UI.
        timeout: longest time one prediction run may take.
        train_timeout: longest time one training may take.
        placement: where Airflow runs the tasks, and before whose.
        train_placement: likewise of training and rollback; by default the same.
        name: set from the file's name when the file is read.
        file: path of that file, set likewise.
    """

    description: Written
    features_query: Query
    labels_query: Query
    features: Mapping[str, Feature] = Field(min_length=1)
    estimator: Callable[[], Any]
    positive: str | None = Field(default=None, min_length=1)
    mode: Literal["merge", "replace"] = "merge"
    schedule: Cron = "*/10 * * * *"
    train_schedule: Cron = "0 3 * * 1"
    retrain_on_drift: Span | None = None
    history: Span = timedelta(weeks=8)
    holdout: Span = Field(default=timedelta(weeks=1), validate_default=True)
    train_samples: int = Field(default=8, ge=2)
    look_back: Span = timedelta(days=1)
    chunk_rows: int = Field(default=50_000, ge=1)
    parts: int = Field(default=1, ge=1, le=256)
    gate: Gate = Gate()
    limits: Limits = Limits()
    monitor: Monitor = Monitor()
    rescore_late: bool = True
    keep: Span = timedelta(days=90)
    expire: Span | None = None
    keep_versions: int = Field(default=10, ge=2)
    title: Tag | None = None
    labels: Mapping[str, Tag] = Field(default_factory=dict)
    owner: Owner = "data-science"
    tags: tuple[Tag, ...] = ()
    timeout: Span = timedelta(minutes=30)
    train_timeout: Span = timedelta(hours=2)
    placement: Placement = Placement()
    train_placement: Placement | None = None
    name: str = ""
    file: str = ""

    # Validators of fields and not of the model, so that all problems are told at once.
    @field_validator("features")
    @classmethod
    def _names(cls, features: Mapping[str, Feature]) -> Mapping[str, Feature]:
        reserved = [name for name in features if name in RESERVED_COLUMNS]
        if reserved:
            raise ValueError(f"features may not be named {', '.join(reserved)}")
        return features

    @field_validator("holdout")
    @classmethod
    def _shorter(cls, holdout: timedelta, info: ValidationInfo) -> timedelta:
        history = info.data.get("history")
        if history is not None and holdout >= history:
            raise ValueError("must be shorter than history")
        return holdout

    @field_validator("gate")
    @classmethod
    def _of_features(cls, gate: Gate, info: ValidationInfo) -> Gate:
        features = info.data.get("features", {})
        odd = [
            name
            for name in gate.slices
            if features and getattr(features.get(name), "kind", None) != "category"
        ]
        if odd:
            raise ValueError(f"slices must name features of kind Category, not {', '.join(odd)}")
        return gate

    @field_validator("monitor")
    @classmethod
    def _watched(cls, monitor: Monitor, info: ValidationInfo) -> Monitor:
        features: Mapping[str, Feature] = info.data.get("features", {})
        if odd := [name for name in monitor.ignore if features and name not in features]:
            raise ValueError(f"ignore must name features, not {', '.join(odd)}")
        kinds = {name: feature.kind for name, feature in features.items()}
        named = (*(monitor.slices or ()), *(monitor.performance.slices or ()))
        if odd := [name for name in named if kinds and kinds.get(name) != "category"]:
            raise ValueError(f"slices must name features of kind Category, not {', '.join(odd)}")
        return monitor

    @field_validator("keep")
    @classmethod
    def _as_long_as_labels(cls, keep: timedelta, info: ValidationInfo) -> timedelta:
        monitor = info.data.get("monitor")
        if monitor and monitor.performance.labels_within > keep:
            raise ValueError(
                "must be at least monitor.performance.labels_within, for which labels of the "
                "predictions are waited for"
            )
        return keep

    @field_validator("expire")
    @classmethod
    def _in_merge_mode(cls, expire: timedelta | None, info: ValidationInfo) -> timedelta | None:
        if expire is not None and info.data.get("mode") == "replace":
            raise ValueError("has no meaning in replace mode, where each run replaces all rows")
        return expire
