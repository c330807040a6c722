"""A merge-mode model: rows of a tick join those of other ticks, or take their place."""

from batch_jobs import BatchModel, Gate, Number
from tests.fault_models._rows import estimator, model_fields

model = BatchModel(
    description="Which tick is it?",
    features={"x": Number(nullable=False)},
    estimator=estimator,
    gate=Gate(min_rows=10),
    **model_fields("ticks"),
)
