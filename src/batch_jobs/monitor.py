"""Monitor: what is watched of a model that serves, and when it is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from batch_jobs.fields import Span


class Performance(BaseModel):
    """How what was published is judged once its outcomes are known, and what counts as damage.

    Attributes:
        labels_within: for how long after the end of a window labels are waited for; its figures are
            final then. No longer than `keep`, after which the predictions are gone.
        deadline: how long after the end of its interval a prediction is used: the one counts that
            readers saw then. By default the first one counts that readers saw, if that was before
            its outcome was known.
        slices: categories by each of whose values the metrics are told, too; by default those of
            the gate.
        confidence: of each interval, and how sure damage must be.
        judged: whether damage is judged by `week` or by `day`. By week, two days in which readers
            would have been better off with a constant are damage, too.
        damaged: in how many of the last `of` windows damage must show, the newest among them.
        of: see `damaged`.
        least: how much more than another version a model must lose to be damaged, as a share of
            what a constant loses.
        calibration: how far its answers may be off on average: of a classifier the mean probability
            from the share that came true, of a regression the mean from the outcomes', in multiples
            of what the errors of a constant are (root mean square).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels_within: Span = timedelta(days=28)
    deadline: Span | None = None
    slices: tuple[str, ...] | None = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    judged: Literal["day", "week"] = "week"
    of: int = Field(default=3, ge=1, le=52)
    damaged: int = Field(default=2, ge=1)
    least: float = Field(default=0.02, ge=0, le=1)
    calibration: float = Field(default=0.1, gt=0, le=1)

    @field_validator("deadline")
    @classmethod
    def _in_time(cls, deadline: timedelta | None, info: ValidationInfo) -> timedelta | None:
        within = info.data.get("labels_within")
        if deadline is not None and within is not None and deadline >= within:
            raise ValueError("must be shorter than labels_within")
        return deadline

    @field_validator("damaged")
    @classmethod
    def _of_so_many(cls, damaged: int, info: ValidationInfo) -> int:
        if damaged > info.data.get("of", damaged):
            raise ValueError(f"{damaged} of the last {info.data['of']} windows cannot be: raise of")
        return damaged


class Monitor(BaseModel):
    """What is watched of a model that serves: drift of its inputs and its scores.

    Each day of what was published is compared with the days that its version was trained on: with
    how much those differed from one another, since the rows of a day are not independent. Each
    statistic is judged over the newest day and over `window`. Drift is news; see `drift_alarm`.

    Attributes:
        window: the longer time over which days are judged together; a whole number of days.
        limit: how far off a statistic may lie, 1 being the limits that brought no false alarm in a
            real year; 1.5 lets each go half as far again.
        ignore: features that are not watched.
        slices: categories for each of whose values the number of rows is watched; by default those
            of which training saw at most twelve.
        drift_alarm: whether drift is an alarm even if nothing shows that it does damage.
        performance: how what was published is judged once its outcomes are known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: Span = timedelta(days=7)
    limit: float = Field(default=1, ge=0.5, le=100)
    ignore: tuple[str, ...] = ()
    slices: tuple[str, ...] | None = None
    drift_alarm: bool = False
    performance: Performance = Performance()

    @field_validator("window")
    @classmethod
    def _whole_days(cls, window: timedelta) -> timedelta:
        if window % timedelta(days=1) or window < timedelta(days=2):
            raise ValueError(
                "must be a whole number of days, two or more: one day is judged anyway"
            )
        return window

    @field_validator("slices")
    @classmethod
    def _not_ignored(
        cls, slices: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        if both := sorted(set(slices or ()) & set(info.data.get("ignore", ()))):
            raise ValueError(f"{', '.join(both)} cannot be watched and in `ignore` at once")
        return slices
