"""The site builds strictly, has no page that nobody reaches, and asks no other server."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from batch_jobs.model import BatchModel, Gate, Limits
from batch_jobs.monitor import Monitor, Performance
from docs.generator import __main__ as command
from docs.generator import outward, reference
from docs.generator.site import PLACE, blocks, build
from prediction_api.contract import VIEWS
from tests.conftest import ROOT

PAGES = sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    built = build(ROOT, tmp_path_factory.mktemp("docs") / "built")
    assert built is not None
    return built


class Page(HTMLParser):
    """The links, sources and anchors of one page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        """Sort what a tag refers to."""
        given = dict(attrs)
        self.anchors.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in {"canonical", "next", "prev"}:
            self.loaded.append(given["href"])
        elif given.get("src"):
            self.loaded.append(given["src"])


def found(site, page, link):
    """The file of the site that a link of a page means; None for another server."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    base = site if parts.path.startswith("/") else page.parent
    target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
    return target / "index.html" if target.is_dir() else target


def test_no_link_and_no_picture_leads_nowhere(site):
    """Also those to a heading, and those that Zensical does not look at."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            target, anchor = found(site, path, link), unquote(urlsplit(link).fragment)
            if target is None:
                continue
            lost = anchor and target in pages and anchor not in pages[target].anchors
            if not target.exists() or lost:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_every_page_is_in_the_menu_and_the_menu_has_no_other():
    """No page is an orphan."""
    config = (ROOT / "docs" / "zensical.toml").read_text()
    assert sorted(re.findall(r'"([\w/-]+\.md)"', config)) == PAGES


def test_a_page_asks_no_other_server_for_anything(site):
    """No script, style, font or picture comes from elsewhere, so it works offline."""
    for path in site.rglob("*.html"):
        loaded = Page(path).loaded
        assert [link for link in loaded if urlsplit(link).netloc] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"url\(\s*[\"']?https?:", style.read_text("utf-8")) == []


def test_a_page_can_be_searched_for(site):
    """What is generated can, too."""
    index = (site / "search.json").read_text("utf-8")
    assert "BATCH_JOBS_WAREHOUSE" in index
    assert "idle in a transaction" in index


def test_every_block_is_shown_somewhere_and_every_place_is_filled(site):
    """None is generated for nobody, none is asked for in vain."""
    asked = {
        place["name"]
        for page in PAGES
        for place in PLACE.finditer((ROOT / "docs" / page).read_text())
    }
    assert asked == set(blocks(ROOT))
    assert not [
        path for path in site.rglob("*.html") if "<!-- generated: " in path.read_text("utf-8")
    ]


def test_every_variable_that_is_read_is_in_the_reference():
    """And no other one."""
    shown = reference.settings() + reference.watch_settings()
    shown += reference.alert_settings() + reference.kafka_settings()
    told = re.findall(r"`(BATCH_JOBS_[A-Z_]+)`", shown)
    read = re.findall(
        r"BATCH_JOBS_[A-Z_]+", (ROOT / "src" / "batch_jobs" / "settings.py").read_text()
    )
    assert set(told) == set(read)


def test_every_variable_of_the_server_is_in_the_reference():
    """As its own errors name it."""
    told = re.findall(r"`PREDICTION_API_([A-Z_]+)`", reference.api_settings())
    source = (ROOT / "src" / "prediction_api" / "config.py").read_text()
    assert [name for name in told if name not in source and name.lower() not in source] == []


@pytest.mark.parametrize(
    ("kind", "generated"),
    [
        (BatchModel, reference.model_fields),
        (Gate, reference.gate_fields),
        (Limits, reference.limits_fields),
        (Monitor, reference.monitor_fields),
        (Performance, reference.performance_fields),
    ],
)
def test_every_field_of_a_model_is_in_the_reference(kind, generated):
    """With a sentence from its docstring."""
    told = re.findall(r"^\| `(\w+)` \| \S", generated(), re.MULTILINE)
    assert set(told) == set(kind.model_fields) - {"name", "file"}


def test_every_column_of_the_contract_is_in_the_reference():
    """In the contract's own words."""
    told = outward.read_contract()
    for columns in VIEWS.values():
        for name, meaning in columns.items():
            assert f"| `{name}` | {meaning} |" in told


def test_a_broken_link_fails_the_build(tmp_path, capsys):
    """Strict means that somebody hears of it."""
    clone = tmp_path / "clone"
    for name in ("docs", "tests", "run", "dags"):
        clone.mkdir(exist_ok=True)
        (clone / name).symlink_to(ROOT / name)
    (clone / "docs").unlink()
    (clone / "docs").mkdir()
    for each in (ROOT / "docs").iterdir():
        if each.name != "index.md":
            (clone / "docs" / each.name).symlink_to(each)
    (clone / "docs" / "index.md").write_text("# Start\n\n[nowhere](nowhere.md)\n")
    assert build(clone, tmp_path / "built") is None
    assert "page does not exist" in capsys.readouterr().err


def test_the_command_tells_where_the_site_is(monkeypatch, tmp_path, capsys):
    """`./run docs` ends with the page to open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "build", lambda *_: tmp_path / "site")
    assert command.main([]) == 0
    assert capsys.readouterr().out == "built site/index.html\n"
