"""`check`: all that can be proved about a model file before it is deployed, all findings at once.

Nothing is written, neither to the warehouse nor to the model store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from batch_jobs import clock
from batch_jobs.catalog import load_model
from batch_jobs.database.transactions import bounds, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import Interval, newest_due
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry import champions, versions
from batch_jobs.settings import Settings
from batch_jobs.training import dataset

if TYPE_CHECKING:
    import pandas as pd

    from batch_jobs.scoring.fitted import Fitted
    from batch_jobs.training.dataset import Split

SAMPLES = 3
ROWS_ONE_BY_ONE = 100
HOUR = timedelta(hours=1)
# Where a history is cut, beside each hour of its last day.
PARTS = (0.07, 0.19, 0.37, 0.58, 0.81, 0.93)
# A feature that alone tells the label so well is, as a rule, made of it.
TELLTALE = 0.995
# Of these, people take the one that sorts last for the positive class.
PLAIN_CLASSES = {
    "0",
    "1",
    "-1",
    "false",
    "true",
    "0.0",
    "1.0",
    "-1.0",
    "no",
    "yes",
    "n",
    "y",
    "f",
    "t",
}


@dataclass(frozen=True)
class Finding:
    """What became of one proof.

    Attributes:
        proof: what was to be proved.
        holds: whether it was.
        said: figures, or what is wrong and what would be right.
    """

    proof: str
    holds: bool
    said: str


class Unproved(Exception):
    """A proof that does not hold, in words."""


def check(settings: Settings, name: str, as_of: datetime | None = None) -> list[Finding]:
    """Try everything that training and scoring will do, on the real source.

    Args:
        settings: where everything is.
        name: the model.
        as_of: as if it were that time; now by default.

    Raises:
        InputError: unknown model, a model file that is none (all its problems are told at once), or
            no warehouse.
    """
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    report = _Report()
    now = as_of or clock.now()
    _tell_of_the_champion(report, warehouse, model)
    _check_queries(report, warehouse, model, now)
    _check_rows(report, warehouse, model, now)
    split: Split | None = None
    with report.proof("training has enough rows whose labels are known"):
        split = dataset.read_split(warehouse, model, now)
        report.say(
            f"{len(split.fit):,} to learn from, {len(split.judge):,} to judge on, "
            f"{split.coverage:.0%} of the newest labelled"
        )
    if split is not None:
        _check_features(report, model, split)
        _check_estimator(report, model, split)
    return report.findings


class _Report:
    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.said: list[str] = []
        self._causes: dict[str, str] = {}  # and the proof that has met it first

    def say(self, words: str) -> None:
        self.said.append(words)

    @contextmanager
    def proof(self, what: str) -> Iterator[None]:
        """Whatever is raised inside is a finding, and the next proof is tried."""
        self.said = []
        began = time.monotonic()
        holds = True
        try:
            yield
        except (Unproved, BatchJobsError) as error:
            holds, self.said = False, [self._once(what, str(error))]
        except Exception as error:  # noqa: BLE001 - the user's queries and estimator may raise anything
            holds, self.said = False, [self._once(what, first_line(error))]
        said = "; ".join(self.said) or f"{time.monotonic() - began:.1f} s"
        self.findings.append(Finding(what, holds, said))

    def _once(self, proof: str, cause: str) -> str:
        """A cause that an earlier proof has met already is told by that one."""
        before = self._causes.setdefault(cause, proof)
        return cause if before == proof else f"for the same reason as: {before}"


def _tell_of_the_champion(report: _Report, warehouse: Warehouse, model: BatchModel) -> None:
    """An edit is no fault, but does not serve before the next training."""
    serving = champions.champion(warehouse, model.name)
    if serving is not None:
        with report.proof("it is known what serves"):
            same = f"{serving.version}, trained from this very file"
            report.say(versions.file_differs(model, serving) or same)


def _check_queries(report: _Report, warehouse: Warehouse, model: BatchModel, now: datetime) -> None:
    values = bounds(newest_due(model.schedule, now))
    for kind, query in (("features", model.features_query), ("labels", model.labels_query)):
        with report.proof(f"the database understands the {kind} query"):
            warehouse.require_query(f"{kind}_query of {model.name}", query, values)
            report.say("compiles")


def _check_rows(report: _Report, warehouse: Warehouse, model: BatchModel, now: datetime) -> None:
    from batch_jobs.scoring import contract

    newest = newest_due(model.schedule, now)
    with report.proof("one interval is read and held to its contract in time"):
        began = time.monotonic()
        checked = contract.check_features(
            model, _read(warehouse, model.features_query, newest), newest
        )
        seconds = time.monotonic() - began
        report.say(f"{len(checked.rows):,} rows of {newest} in {seconds:.2f} s")
        if seconds > (newest.end - newest.start).total_seconds() / 2:
            raise Unproved(f"{'; '.join(report.said)}: that is more than half of its time")
    span = Interval(now - model.history, now) if model.mode == "merge" else newest
    read: list[pd.DataFrame] = []
    with report.proof("the rows of the whole history keep the contract"):
        whole = _read(warehouse, model.features_query, span)
        checked = contract.check_features(model, whole, span)
        read.append(whole)
        report.say(f"{len(whole):,} rows")
        if checked.rejected:
            shown = "; ".join(f"{key}: {why}" for key, why, _ in checked.rejected[:SAMPLES])
            raise Unproved(
                f"{len(checked.rejected):,} of {len(whole):,} rows would be set aside, e.g. {shown}"
            )
    if read and model.mode == "merge":
        with report.proof("a long interval has the very rows of its parts"):
            _require_additive(warehouse, model, span, read[0])
            report.say("uneven parts, and each hour of the last day")
    with report.proof("labels become known after their rows could be scored"):
        _require_later_labels(report, warehouse, model, span, next(iter(read), None))


def _require_additive(
    warehouse: Warehouse, model: BatchModel, span: Interval, whole: pd.DataFrame
) -> None:
    import pandas as pd

    length = span.end - span.start
    shares = {span.start + length * share for share in PARTS}
    hours = {span.end - number * HOUR for number in range(1, 25)}
    cuts = sorted({span.start, span.end, *(cut for cut in shares | hours if cut > span.start)})
    parts = pd.concat(
        [
            _read(warehouse, model.features_query, Interval(start, end))
            for start, end in pairwise(cuts)
        ],
        ignore_index=True,
    )
    names = ["entity_id", "as_of", *model.features]
    one, other = (
        frame[names].astype("object").set_index("entity_id").sort_index(kind="stable")
        for frame in (whole, parts)
    )
    if missing := sorted(set(one.index) ^ set(other.index), key=str):
        raise Unproved(
            f"{len(missing):,} keys are in one and not in the other, e.g. {_some(missing)}: the "
            f"query may use :start and :end only to bound as_of"
        )
    different = ~((one == other) | (one.isna() & other.isna()))
    if different.any().any():
        column = different.any().idxmax()
        keys = different.index[different[column]]
        place = different[column].to_numpy().nonzero()[0][0]
        raise Unproved(
            f"{column} differs in {len(keys):,} rows, e.g. {_some(keys)}: of {keys[0]!r} it is "
            f"{one[column].iloc[place]!r} in the whole and {other[column].iloc[place]!r} in a "
            f"part; it depends on :start or :end, so training would see other values than scoring"
        )


def _require_later_labels(
    report: _Report,
    warehouse: Warehouse,
    model: BatchModel,
    span: Interval,
    whole: pd.DataFrame | None,
) -> None:
    import pandas as pd

    from batch_jobs.database.columns import texts, times
    from batch_jobs.scoring import contract

    labels = contract.check_labels(model, _read(warehouse, model.labels_query, span))
    report.say(f"{len(labels):,} labels")
    if whole is None or labels.empty:
        return
    key = ["entity_id", "as_of"] if "as_of" in labels else ["entity_id"]
    rows = pd.DataFrame({"entity_id": texts(whole["entity_id"]), "as_of": times(whole["as_of"])})
    both = rows.merge(labels, on=key, how="inner", suffixes=("", "_label"))
    early = both[both["known_at"] <= both["as_of"]]
    if len(early):
        raise Unproved(
            f"{len(early):,} of {len(both):,} labels were known when the row came up for scoring, "
            f"e.g. that of {_some(early['entity_id'])}: then there is nothing to predict, or "
            f"known_at is not the moment at which the label became known"
        )
    if not len(both):
        raise Unproved("no label has the key of a row: do both queries give the same entity_id?")
    waits = (both["known_at"] - both["as_of"]).dt.round("s")
    report.say(f"half of them within {waits.median()}")


def _check_features(report: _Report, model: BatchModel, split: Split) -> None:
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    rows = pd.concat([split.fit, split.judge], ignore_index=True)
    with report.proof("no feature varies not at all, or is always missing"):
        flat = [name for name in model.features if rows[name].nunique(dropna=False) < 2]
        if flat:
            raise Unproved(f"{', '.join(flat)}: one value in all {len(rows):,} rows")
        report.say(f"{len(model.features)} features")
    labels = rows["label"]
    if labels.nunique() != 2:
        return
    with report.proof("no feature knows the label"):
        truth = labels == labels.max()
        told = {}
        for name, feature in model.features.items():
            # Means of the label within a category would tell every rare category's own.
            if feature.kind == "number" and rows[name].notna().any():
                values = rows[name].fillna(rows[name].median())
                area = roc_auc_score(truth, values)
                told[name] = max(area, 1 - area)
            missing = rows[name].isna()
            if 0 < missing.sum() < len(rows):
                area = roc_auc_score(truth, missing)
                told[name] = max(told.get(name, 0.5), area, 1 - area)
        telltale = [f"{name} (AUC {area:.3f})" for name, area in told.items() if area > TELLTALE]
        if telltale:
            raise Unproved(
                f"{', '.join(telltale)} alone tells the label: was it known at as_of, or is it "
                f"made of the label?"
            )
        report.say(f"at most AUC {max(told.values(), default=0.5):.3f} by one alone")


def _check_estimator(report: _Report, model: BatchModel, split: Split) -> None:
    from batch_jobs.evaluation import metrics
    from batch_jobs.scoring.golden import golden, unlike_golden
    from batch_jobs.training import fit

    found: list[Fitted] = []
    with report.proof("the estimator fits"):
        began = time.monotonic()
        fitted = fit.fit(model, split.fit)
        fit.require_answers(model, fitted, split.judge)
        found.append(fitted)
        report.say(f"{time.monotonic() - began:.1f} s, {_peak_memory()} MB at most")
        if time.monotonic() - began > model.train_timeout.total_seconds() / 2:
            raise Unproved(f"{'; '.join(report.said)}: more than half of its train_timeout")
    if not found:
        return
    fitted = found[0]
    if fitted.positive is not None:
        with report.proof("it is said which class the score is the probability of"):
            report.say(f"that of {fitted.positive!r}")
            _require_named_class(model, fitted)
    with report.proof("the fitted estimator is stored and answers as before"):
        from batch_jobs.registry.store import deserialize_bytes, serialize

        content = serialize(fitted.estimator)
        kept = golden(fitted, split.judge)
        problem = unlike_golden(replace(fitted, estimator=deserialize_bytes(content)), kept)
        if problem:
            raise Unproved(problem)
        report.say(f"{len(content) / 1e6:.1f} MB")
    with report.proof("a row's answer does not depend on the rows beside it"):
        _require_same_in_any_chunk(fitted, split.judge)
        report.say(f"{min(len(split.judge), ROWS_ONE_BY_ONE)} rows, one by one and turned round")
    with report.proof("it is better than the constant answer"):
        judged = metrics.judge(fitted, split.judge)
        constant = metrics.baseline(fitted, split.fit, split.judge)
        loss, bound = judged.losses.mean(), constant.losses.mean()
        report.say(", ".join(f"{name} {value:.4f}" for name, value in judged.metrics.items()))
        if not loss < bound:
            raise Unproved(f"its loss is {loss:.4f}, and that of a constant answer {bound:.4f}")


def _require_named_class(model: BatchModel, fitted: Fitted) -> None:
    """Numbers and truth values have a positive class by themselves, words have not."""
    classes = fitted.classes or ()
    if model.positive is None and not {label.lower() for label in classes} <= PLAIN_CLASSES:
        raise Unproved(
            f"the score is the probability of {fitted.positive!r}, only because that sorts last of "
            f"{' and '.join(map(repr, classes))}; write positive={classes[0]!r} or "
            f"positive={classes[1]!r} in the model file"
        )


def _require_same_in_any_chunk(fitted: Fitted, rows: pd.DataFrame) -> None:
    import numpy as np

    from batch_jobs.scoring.fitted import are_alike

    chosen = rows.head(ROWS_ONE_BY_ONE)

    def answers(frame: pd.DataFrame) -> Any:
        return fitted.answers(fitted.inputs(frame))

    whole = answers(chosen)
    alone = np.concatenate([answers(chosen.iloc[[place]]) for place in range(len(chosen))])
    for other, how in ((alone, "alone"), (answers(chosen[::-1])[::-1], "in another order")):
        different = ~are_alike(whole, other)
        if different.any():
            place = int(different.argmax())
            raise Unproved(
                f"{chosen['entity_id'].iloc[place]} is answered {whole[place]} among others and "
                f"{other[place]} {how}: something is computed over the rows at hand"
            )


@repeatable
def _read(warehouse: Warehouse, query: str, span: Interval) -> pd.DataFrame:
    return dataset.read_whole(warehouse, query, span)


def _some(keys: Any) -> str:
    return ", ".join(map(str, list(keys)[:SAMPLES]))


def _peak_memory() -> int:
    """Megabytes that this process has held at most; 0 where nobody counts."""
    with suppress(ImportError):
        import resource
        import sys

        unit = 1024 * 1024 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
    return 0
