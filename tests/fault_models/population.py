"""A replace-mode model: ten members, all scored again at every tick."""

from batch_jobs import BatchModel, Gate, Number
from tests.fault_models._rows import estimator, model_fields

model = BatchModel(
    description="Which tick is it, for everybody?",
    mode="replace",
    features={"x": Number(nullable=False)},
    estimator=estimator,
    gate=Gate(min_rows=10),
    **model_fields("population"),
)
