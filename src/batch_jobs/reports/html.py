"""Reports as pages: text, tables and drawings in one file that needs no network and no script.

The same numbers always give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NewType

from batch_jobs.reports.palette import DRAWN, INK, LIGHT, LINE, QUIET
from batch_jobs.reports.templating import own

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Svg = NewType("Svg", str)

WIDTH_INCHES = 4.8
FONT = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": QUIET,
    "axes.labelsize": 9.5,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": QUIET,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Section:
    """One part of a page, in this order.

    Attributes:
        title: its heading; none if empty.
        text: paragraphs of plain text.
        drawings: what `svg` made; side by side where there is room.
        rows: of a table, with equal keys, which are its head; numbers stand on the right.
    """

    title: str = ""
    text: Sequence[str] = ()
    drawings: Sequence[Svg] = ()
    rows: Sequence[Mapping[str, object]] = ()


def page(title: str, sections: Sequence[Section]) -> str:
    """A whole HTML page, readable on a phone, in print and on a dark screen.

    Whatever is given, but for drawings, is text and is escaped.
    """
    return own().get_template("report.html").render(title=title, sections=sections, cell=_cell)


def svg(paint: Callable[..., None], label: str, *, height: float = 3.0, panels: int = 1) -> Svg:
    """Let a function paint on axes of our style, and give the drawing as inline SVG.

    Args:
        paint: is called with one matplotlib axes for each panel.
        label: what the drawing shows, for those who cannot see it; another one for each drawing of
            a page, because its ids are made of it.
        height: in inches; the width is always the same, so that text is of one size.
        panels: how many, one above the other, with one x-axis.
    """
    from io import StringIO

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = STYLE | {"svg.hashsalt": label}
    with rc_context(style):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        axes: list[Axes] = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
        paint(*axes)
        written = StringIO()
        # Without these, the file would tell the date and the version of matplotlib.
        figure.savefig(
            written,
            format="svg",
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return _inline(written.getvalue(), label)


def _inline(written: str, label: str) -> Svg:
    """One SVG element whose colours are the page's, and whose ids are no other drawing's."""
    drawn = written[written.index("<svg") :].strip()
    drawn = re.sub(r"<(g|text) id=\"[^\"]*\"", r"<\1", drawn)
    drawn = drawn.replace("'DejaVu Sans'", FONT)
    for name in DRAWN:
        drawn = drawn.replace(f": {LIGHT[name]}", f": var(--{name})")
    head, _, rest = drawn.partition(">")
    return Svg(f'{head} role="img" aria-label="{escape(label)}">{rest}')


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
