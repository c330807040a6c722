"""The templates that reports and the API's page share: a skeleton, and a style."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from batch_jobs.reports.palette import DARK, LIGHT

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(*packages: str) -> Environment:
    """Where templates are found, first in these packages and then in ours; all values are escaped.

    A name that a template is not given is an error, and no empty text.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader(package) for package in (*packages, "batch_jobs.reports")]
    made = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"light": LIGHT, "dark": DARK}
    return made


@cache
def own() -> Environment:
    """The environment of reports."""
    return environment()


@cache
def style() -> str:
    """The style sheet that every page has."""
    return own().get_template("style.css").render()
