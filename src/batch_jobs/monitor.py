"""Monitor: what is watched of a model that serves, and when it is told."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from batch_jobs.fields import Span


class Monitor(BaseModel):
    """What is watched of a model that serves: drift of its inputs and its scores.

    Each day of what was published is compared with the days that its version was trained on: with
    how much those differed from one another, since the rows of a day are not independent. Each
    statistic is judged over the newest day and over `window`. Drift is news; see `drift_alarm`.

    Attributes:
        window: the longer time over which days are judged together; a whole number of days.
        limit: how far a statistic may lie from its training days, in multiples of what those
            differ by among themselves.
        ignore: features that are not watched.
        slices: categories for each of whose values the number of rows is watched; by default those
            of which training saw at most twelve.
        drift_alarm: whether drift is an alarm even if nothing shows that it does damage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: Span = timedelta(days=7)
    limit: float = Field(default=4, ge=2, le=100)
    ignore: tuple[str, ...] = ()
    slices: tuple[str, ...] | None = None
    drift_alarm: bool = False

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
