"""Serve a scikit-learn model in batch: train, evaluate, promote, score and publish."""

from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel, Category, Gate, Limits, Number
from batch_jobs.monitor import Monitor, Performance
from batch_jobs.placement import Placement

__all__ = [
    "BatchModel",
    "Category",
    "Gate",
    "Interval",
    "Limits",
    "Monitor",
    "Number",
    "Performance",
    "Placement",
]
