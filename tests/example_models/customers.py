"""A replace-mode regressor: the whole population, every hour."""

from datetime import timedelta

from batch_jobs import BatchModel, Gate, Number


def estimator():
    """The unfitted estimator."""
    from sklearn.linear_model import LinearRegression

    return LinearRegression()


model = BatchModel(
    description="What will this customer spend?",
    mode="replace",
    schedule="0 * * * *",
    features_query="""
        SELECT entity_id, :start AS as_of, visits + length(substr(:end, 1, 0)) AS visits
        FROM customers""",
    labels_query="""
        SELECT entity_id, :start AS as_of, spent AS label, :end AS known_at FROM customers""",
    features={"visits": Number()},
    estimator=estimator,
    history=timedelta(days=4),
    holdout=timedelta(days=2),
    gate=Gate(min_rows=10),
)
