"""A report is one page of its own: the same bytes each time, and nothing of others is markup."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from jinja2 import UndefinedError

from batch_jobs.reports.html import Section, page, svg
from batch_jobs.reports.palette import BLUE, DARK, DRAWN, LIGHT
from batch_jobs.reports.templating import own, style


def _paint(axes):
    axes.plot([0, 1, 2], [1, 3, 2], "o-", color=BLUE, label="a < b & $c$")
    axes.legend()


class _Seen(HTMLParser):
    """The elements of a page, their attributes, and whether each one is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_same_numbers_give_the_same_bytes():
    """A drawing tells no date, and its ids are not drawn by lot."""
    drawn = svg(_paint, "Three points")
    assert svg(_paint, "Three points") == drawn
    assert "date" not in drawn.lower()
    assert "matplotlib" not in drawn.lower()


def test_a_drawing_is_well_formed_and_told_in_words():
    """One svg element, whose label is read to those who cannot see it, and whose text is text."""
    drawn = ET.fromstring(svg(_paint, 'Points of "a" & <b>'))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert drawn.attrib["aria-label"] == 'Points of "a" & <b>'
    assert "a < b & $c$" in list(drawn.itertext())


def test_drawings_of_one_page_share_no_id():
    """An id that is there twice would clip one drawing by the other's frame."""
    drawings = [svg(_paint, "one"), svg(lambda *panels: [_paint(each) for each in panels], "two")]
    ids = [found for drawing in drawings for found in re.findall(r'\bid="([^"]+)"', drawing)]
    assert ids
    assert len(ids) == len(set(ids))


def test_panels_share_one_x_axis():
    """The function is called with as many axes as were asked for."""
    seen = []
    svg(lambda *panels: seen.extend(panels), "Two panels", panels=2)
    assert len(seen) == 2
    assert seen[0].get_shared_x_axes().joined(*seen)


def test_drawing_leaves_the_settings_of_others_alone():
    """Whoever draws with matplotlib in the same process goes on as before."""
    before = dict(mpl.rcParams)
    svg(_paint, "Three points")
    assert dict(mpl.rcParams) == before


def test_a_page_needs_nothing_but_itself():
    """No script, no style sheet, no picture and no font of elsewhere; all that opens is closed."""
    made = page("Report", [Section("One", ["text"], [svg(_paint, "one")], [{"a": 1}])])
    seen = _Seen(made)
    assert seen.open == []
    assert not {"script", "link", "img", "iframe"} & set(seen.tags)
    assert not re.search(r"url\((?!#)|@import", made)
    targets = [value for name, value in seen.attributes if name in {"href", "src", "xlink:href"}]
    assert all(target.startswith("#") for target in targets)


def test_whatever_is_given_is_text():
    """A category named like a tag is shown and not run."""
    evil = "<script>alert(1)</script>"
    made = page(evil, [Section(evil, [evil], [svg(_paint, evil)], [{evil: evil}])])
    assert "script" not in _Seen(made).tags
    assert made.count("&lt;script&gt;") == 7


def test_a_table_writes_numbers_for_readers():
    """Numbers stand on the right; what is missing is a dash."""
    rows = [{"count": 1234567, "share": 0.25, "sure": True, "none": None, "name": "x"}]
    made = page("Report", [Section(rows=rows)])
    assert '<td class="number">1,234,567</td>' in made
    assert '<td class="number">0.2500</td>' in made
    assert "<td>-</td><td>x</td>" in made
    assert ">yes</td>" in made


def _contrast(one, other):
    """The contrast ratio of two colours, as WCAG 2.1 defines it."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("name", "on", "wanted"),
    [
        *(("ink", place, 4.5) for place in ("paper", "card")),
        *(("quiet", place, 4.5) for place in ("paper", "card")),
        *(("accent", place, 4.5) for place in ("paper", "card", "on-accent")),
        *(("good", "good-paper", 4.5), ("late", "late-paper", 4.5)),
        *((name, "card", 3.0) for name in DRAWN if name not in {"card", "line"}),
    ],
)
def test_colours_are_seen_on_light_and_on_dark(colours, name, on, wanted):
    """Text has the contrast of WCAG's AA, and what is drawn that of graphics; the grid is faint."""
    assert _contrast(colours[name], colours[on]) >= wanted


def test_each_colour_has_one_for_dark_screens():
    """And what is drawn is found by its colour, which is therefore nobody else's."""
    assert list(LIGHT) == list(DARK)
    assert len({LIGHT[name] for name in DRAWN}) == len(DRAWN)


def test_a_drawing_has_the_colours_of_its_page():
    """By their names, so that they change with the screen."""
    drawn = svg(_paint, "Three points")
    assert "var(--blue)" in drawn
    assert [value for value in LIGHT.values() if f": {value}" in drawn] == []


def test_a_report_and_the_page_of_the_api_have_one_style():
    """The colours stand in one place, and the report brings the style along."""
    assert f"--ink: {LIGHT['ink']};" in style()
    assert f"--ink: {DARK['ink']};" in style()
    assert style() in page("Report", [])


def test_a_name_that_a_template_is_not_given_is_an_error():
    """A gap in a report would tell that there is nothing to say."""
    with pytest.raises(UndefinedError):
        own().from_string("{{ verdict }}").render()
