"""The colours of reports and of the API's page, named once, for light and for dark screens.

Colour-blind readers can tell those of data apart (Okabe and Ito, "Color universal design", 2008).
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#f6f7f9",
    "card": "#fefefe",
    "ink": "#1c2430",
    "quiet": "#5b6675",
    "line": "#dfe3e9",
    "accent": "#2f5d8a",
    "on-accent": "#ffffff",
    "good": "#1f7a4d",
    "good-paper": "#e3f3ea",
    "late": "#9a4a00",
    "late-paper": "#fdecd8",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#00876a",
    "purple": "#b0568a",
    "grey": "#7f8792",
}
DARK: Mapping[str, str] = {
    "paper": "#12161c",
    "card": "#1a2029",
    "ink": "#e7ebf0",
    "quiet": "#9aa5b4",
    "line": "#2c3440",
    "accent": "#8db8e4",
    "on-accent": "#10202f",
    "good": "#7fd3a6",
    "good-paper": "#17352a",
    "late": "#f2b270",
    "late-paper": "#3d2a15",
    "blue": "#56b4e9",
    "orange": "#f28a3c",
    "green": "#2fc49d",
    "purple": "#e094bf",
    "grey": "#8d95a0",
}
# What drawings are made of; no two of these are the same, so that each can be found by its colour.
DRAWN = ("ink", "quiet", "line", "card", "blue", "orange", "green", "purple", "grey")
INK, QUIET, LINE, CARD = (LIGHT[name] for name in DRAWN[:4])
BLUE, ORANGE, GREEN, PURPLE, GREY = (LIGHT[name] for name in DRAWN[4:])
