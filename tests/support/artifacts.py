"""A small artifact, its version, and one whose loading runs code."""

import hashlib

from sklearn.linear_model import LinearRegression

from batch_jobs.registry.store import libraries, serialize
from batch_jobs.registry.versions import ModelVersion

GOOD = serialize(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]))


def version_of(content=GOOD, name="v1", **manifest):
    """The version of these bytes, as the warehouse knows it."""
    digest = hashlib.sha256(content).hexdigest()
    return ModelVersion("orders", name, "", digest, {"libraries": libraries()} | manifest, {}, {})


class Hostile:
    """Unpickling it runs code that leaves a marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))
