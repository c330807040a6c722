"""Claim intervals of a model, as the command line and the DAGs do."""

from batch_jobs.runs.planning import Planner


def plan(settings, name, interval, token, *, parts=None, **options):
    """Claim one interval; options of `Planner.claim`."""
    return Planner(settings, name, token, parts=parts).claim(interval, **options)


def plan_due(settings, name, newest, token):
    """Claim the newest interval, and before it those that need it."""
    return Planner(settings, name, token).plan_due(newest)
