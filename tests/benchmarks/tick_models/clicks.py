"""A model as most are: numbers and a category through scikit-learn's boosted trees."""

from datetime import timedelta

from batch_jobs import BatchModel, Category, Gate, Number


def estimator():
    """The unfitted estimator."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=20)


model = BatchModel(
    description="Will somebody buy what they clicked?",
    features_query="""
        SELECT entity_id, clicked_at AS as_of, price, visits, country FROM clicks
        WHERE clicked_at >= :start AND clicked_at < :end""",
    labels_query="""
        SELECT entity_id, bought AS label, settled_at AS known_at FROM clicks
        WHERE clicked_at >= :start AND clicked_at < :end""",
    features={"price": Number(), "visits": Number(), "country": Category()},
    estimator=estimator,
    # The benchmark starts the runs itself, of intervals in these months.
    schedule="*/10 * * 3,6 *",
    history=timedelta(days=2),
    holdout=timedelta(days=1),
    gate=Gate(min_rows=20),
)
