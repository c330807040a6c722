"""Which iris is it? The smallest complete model: copy this file, then change it line by line.

Source table (`batch_jobs.samples.load` fills it): `iris`, one flower measured every 30 minutes, its
species identified by a botanist two hours later.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from batch_jobs.model import BatchModel, Gate, Number

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def estimator() -> Pipeline:
    """An unfitted scikit-learn estimator; it is imported here because Airflow reads this file."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression())


model = BatchModel(
    description="The species of an iris, from the size of its sepals and petals.",
    # What to read: a key, the moment at which the row could be scored, and the features.
    features_query="""
        SELECT
            entity_id, measured_at AS as_of,
            sepal_length, sepal_width, petal_length, petal_width
        FROM iris
        WHERE measured_at >= :start AND measured_at < :end
    """,
    # What to predict: for the same rows, the label and when it became known.
    labels_query="""
        SELECT entity_id, species AS label, identified_at AS known_at
        FROM iris
        WHERE measured_at >= :start AND measured_at < :end
    """,
    # What the estimator sees, in centimetres; a row that does not fit is set aside.
    features={
        "sepal_length": Number(ge=0, nullable=False),
        "sepal_width": Number(ge=0, nullable=False),
        "petal_length": Number(ge=0, nullable=False),
        "petal_width": Number(ge=0, nullable=False),
    },
    estimator=estimator,
    # How to learn: from three days of flowers, evaluated on the newest one.
    history=timedelta(days=3),
    holdout=timedelta(days=1),
    # How good is good enough to be promoted.
    gate=Gate(min_rows=30, at_least={"accuracy": 0.8}),
    tags=("sample",),
)
