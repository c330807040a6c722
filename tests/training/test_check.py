"""`check` finds in a model file, before it is deployed, what would fail or mislead later."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from batch_jobs import Category, Number
from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.training import check
from tests.support.attempts import ask

NOW = datetime(2024, 3, 1, tzinfo=UTC)
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


@pytest.mark.parametrize("name", ["orders", "customers"])
def test_a_sound_model_passes(shop, name):
    """Of either mode, on either database; nothing is written."""
    tables = ("model_versions", "promotions", "prediction_runs", "rejected_rows", "fences")
    counts = " UNION ALL ".join(f"SELECT count(*) FROM {table}" for table in tables)
    before = ask(Warehouse(shop.warehouse), counts)

    findings = check.check(shop, name, NOW)

    assert [finding for finding in findings if not finding.holds] == []
    assert len(findings) >= 9
    assert all(finding.said for finding in findings)
    assert ask(Warehouse(shop.warehouse), counts) == before


FEATURES = """
    SELECT entity_id, placed_at AS as_of, amount, country FROM orders
    WHERE placed_at >= :start AND placed_at < :end"""
LABELS = """
    SELECT entity_id, returned AS label, settled_at AS known_at FROM orders
    WHERE placed_at >= :start AND placed_at < :end AND returned IS NOT NULL"""


def _noisy():
    """An estimator whose answer depends on the rows beside it."""
    import numpy as np
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    centred = FunctionTransformer(lambda rows: rows - np.mean(rows, axis=0))
    numbers = make_column_transformer(("passthrough", ["amount"]))
    return make_pipeline(numbers, centred, LogisticRegression())


def _unfit():
    """An estimator that cannot be fitted."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Broken(ClassifierMixin, BaseEstimator):
        def fit(self, *_):
            raise ValueError("no such luck")

    return Broken()


def _unpicklable():
    from sklearn.linear_model import LogisticRegression

    class Mine(LogisticRegression):
        def fit(self, inputs, label):
            return super().fit(inputs[["amount"]], label)

        def predict_proba(self, inputs):
            return super().predict_proba(inputs[["amount"]])

    return Mine()


@on_sqlite
@pytest.mark.parametrize(
    ("change", "proof", "words"),
    [
        (
            {"features_query": FEATURES.replace("amount,", "amont,")},
            "the database understands the features query",
            "no such column: amont",
        ),
        (
            {"labels_query": LABELS + " AND"},
            "the database understands the labels query",
            "incomplete input",
        ),
        (
            {"features": {"amount": Number(ge=20), "country": Category()}},
            "the rows of the whole history keep the contract",
            "rows would be set aside, e.g. order-",
        ),
        (
            {
                "features_query": FEATURES.replace(
                    "amount,", "amount + (julianday(:end) - julianday(:start)) AS amount,"
                )
            },
            "a long interval has the very rows of its parts",
            "amount differs in",
        ),
        (
            {"features_query": FEATURES + " ORDER BY placed_at LIMIT 100"},
            "a long interval has the very rows of its parts",
            "keys are in one and not in the other",
        ),
        (
            {"labels_query": LABELS.replace("settled_at", "placed_at")},
            "labels become known after their rows could be scored",
            "there is nothing to predict",
        ),
        (
            {"labels_query": LABELS.replace("entity_id", "'x' || entity_id AS entity_id")},
            "labels become known after their rows could be scored",
            "no label has the key of a row",
        ),
        (
            {"features_query": FEATURES.replace("amount,", "0.0 + returned AS amount,")},
            "no feature knows the label",
            r"amount \(AUC 1.000\) alone tells the label",
        ),
        (
            {"features_query": FEATURES.replace("amount,", "1.0 AS amount,")},
            "no feature varies not at all, or is always missing",
            "amount: one value in all",
        ),
        ({"estimator": _unfit}, "the estimator fits", "no such luck"),
        (
            {"estimator": _unpicklable},
            "the fitted estimator is stored and answers as before",
            "[Pp]ickle",
        ),
        (
            {"estimator": _noisy},
            "a row's answer does not depend on the rows beside it",
            "something is computed over the rows at hand",
        ),
        (
            {"holdout": timedelta(hours=1)},
            "training has enough rows whose labels are known",
            "labelled rows to evaluate on, at least 20 are needed",
        ),
    ],
)
def test_what_is_wrong_is_found_by_the_proof_that_is_about_it(
    shop, monkeypatch, change, proof, words
):
    """In words that say what is wrong; proofs that do not hang on it are tried all the same."""
    model = load_model("orders", shop.models)
    changed = model.model_copy(update=change)
    monkeypatch.setattr("batch_jobs.registry.deployment.load_model", lambda *_: changed)

    findings = {finding.proof: finding for finding in check.check(shop, "orders", NOW)}

    assert not findings[proof].holds
    assert re.search(words, findings[proof].said), findings[proof].said
    assert len(findings) > 5
    assert sum(finding.holds for finding in findings.values()) >= 2


@pytest.mark.slow
def test_a_new_model_file_passes_as_it_stands(tmp_path):
    """And its test runs, from another folder, without ours."""
    package = tmp_path / "team"
    package.mkdir()
    (package / "__init__.py").touch()
    environ = {"BATCH_JOBS_MODELS": "team", "PYTHONPATH": str(tmp_path), "PATH": ""}
    run = {"cwd": tmp_path, "env": environ, "capture_output": True, "text": True}
    command = [sys.executable, "-m", "batch_jobs"]

    made = subprocess.run([*command, "new", "petals"], check=False, **run)
    assert made.returncode == 0, made.stderr
    assert "try `batch-jobs check petals`" in made.stdout
    again = subprocess.run([*command, "new", "petals"], check=False, **run)
    assert (again.returncode, "there already" in again.stderr) == (2, True)
    wrong = subprocess.run([*command, "new", "Petals!"], check=False, **run)
    assert (wrong.returncode, "its name must match" in wrong.stderr) == (2, True)

    tested = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests"], check=False, **run)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "1 passed" in tested.stdout


def test_a_new_model_file_needs_a_package_of_its_own(tmp_path):
    """Ours are not there to be written into."""
    run = {"cwd": tmp_path, "env": {"PATH": ""}, "capture_output": True, "text": True}
    told = subprocess.run([sys.executable, "-m", "batch_jobs", "new", "x"], check=False, **run)
    assert (told.returncode, "not set: BATCH_JOBS_MODELS" in told.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
