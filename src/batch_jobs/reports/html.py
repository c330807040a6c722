"""Reports as pages: text, tables and drawings in one file that needs no network and no script.

The same numbers always give the same bytes. Colours are named once, for light and for dark screens,
and are told apart by colour-blind readers (Okabe and Ito, "Color universal design", 2008).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NewType

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Svg = NewType("Svg", str)

INK, MUTED, GRID, SURFACE = "#1b1f24", "#646b75", "#d8dce2", "#fefefe"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#00876a", "#b0568a", "#7f8792"
# What each colour becomes on a dark screen.
DARK = {
    INK: "#e8eaed",
    MUTED: "#a3aab4",
    GRID: "#3a4048",
    SURFACE: "#15181c",
    BLUE: "#56b4e9",
    ORANGE: "#f28a3c",
    GREEN: "#2fc49d",
    PURPLE: "#e094bf",
    GREY: "#8d95a0",
}
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
    "axes.titlecolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
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
    body = "\n".join(_section(section) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_css()}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


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
    for colour in DARK:
        drawn = drawn.replace(f": {colour}", f": var({_variable(colour)})")
    head, _, rest = drawn.partition(">")
    return Svg(f'{head} role="img" aria-label="{escape(label)}">{rest}')


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"] if section.title else []
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text]
    if section.drawings:
        figures = "\n".join(f"<figure>{drawing}</figure>" for drawing in section.drawings)
        parts.append(f'<div class="drawings">\n{figures}\n</div>')
    if section.rows:
        parts.append(_table(section.rows))
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    head = "".join(
        f'<th scope="col"{_side(value)}>{escape(n)}</th>' for n, value in rows[0].items()
    )
    lines = "\n".join(
        "<tr>" + "".join(f"<td{_side(v)}>{escape(_cell(v))}</td>" for v in row.values()) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody>\n</table></div>"
    )


def _side(value: object) -> str:
    return ' class="number"' if isinstance(value, int | float) else ""


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _variable(colour: str) -> str:
    return f"--c{colour[1:]}"


def _css() -> str:
    light = "".join(f"{_variable(colour)}:{colour};" for colour in DARK)
    dark = "".join(f"{_variable(colour)}:{other};" for colour, other in DARK.items())
    ink, muted, grid, surface = (f"var({_variable(each)})" for each in (INK, MUTED, GRID, SURFACE))
    return f"""
:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
@media print {{ :root {{ {light} }} }}
body {{ margin: 0; background: {surface}; color: {ink}; font: 16px/1.5 {FONT}; }}
main {{ max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
p {{ max-width: 46rem; margin: .4rem 0; overflow-wrap: anywhere; }}
.drawings {{ display: flex; flex-wrap: wrap; gap: 1rem 2rem; }}
figure {{ margin: .5rem 0; flex: 1 1 20rem; max-width: 34rem; }}
svg {{ width: 100%; height: auto; display: block; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .75rem 0; font-size: .9rem; }}
th, td {{ text-align: left; vertical-align: top; overflow-wrap: break-word; min-width: 3rem;
  padding: .3rem clamp(.6rem, 2vw, 1.2rem) .3rem 0; border-bottom: 1px solid {grid}; }}
th {{ color: {muted}; font-weight: 600; vertical-align: bottom; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
td.number {{ white-space: nowrap; }}
"""
