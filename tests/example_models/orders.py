"""A merge-mode classifier on a table small enough to check by hand."""

from datetime import timedelta

from batch_jobs import BatchModel, Category, Gate, Number


def estimator():
    """The unfitted estimator."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["country"]), remainder="passthrough"
    )
    return make_pipeline(encode, LogisticRegression())


model = BatchModel(
    description="Will this order be returned?",
    features_query="""
        SELECT entity_id, placed_at AS as_of, amount, country FROM orders
        WHERE placed_at >= :start AND placed_at < :end""",
    labels_query="""
        SELECT entity_id, returned AS label, settled_at AS known_at FROM orders
        WHERE placed_at >= :start AND placed_at < :end AND returned IS NOT NULL""",
    features={"amount": Number(ge=0, nullable=False), "country": Category()},
    estimator=estimator,
    history=timedelta(days=20),
    holdout=timedelta(days=4),
    look_back=timedelta(hours=2),
    chunk_rows=7,
    gate=Gate(min_rows=20),
    title="Returned orders",
    labels={"0": "kept", "1": "returned"},
)
