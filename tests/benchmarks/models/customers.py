"""A replace-mode classifier of twenty numbers, to measure with: the whole population, every hour.

Its trees are 100 of 31 leaves, what scikit-learn makes unless it is told otherwise.
"""

from batch_jobs import BatchModel, Gate, Number
from tests.benchmarks.models._datasets import FEATURES, HISTORY, HOLDOUT


def estimator():
    """The unfitted estimator."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(early_stopping=False, random_state=0)


model = BatchModel(
    description="Will this customer buy?",
    mode="replace",
    schedule="0 * * * *",
    features_query=f"""
        SELECT entity_id, as_of, {", ".join(FEATURES)} FROM customers
        WHERE as_of >= :start AND as_of < :end""",
    labels_query="""
        SELECT entity_id, as_of, bought AS label, :end AS known_at FROM outcomes
        WHERE as_of >= :start AND as_of < :end""",
    features={name: Number(ge=-10, le=10, nullable=False) for name in FEATURES},
    estimator=estimator,
    history=HISTORY,
    holdout=HOLDOUT,
    gate=Gate(min_rows=100),
)
