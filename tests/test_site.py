"""The site: it builds without a warning, asks nobody else for anything, and can be read on a telephone."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, find_chromium, open_browser

ROOT = Path(__file__).parents[1]
PAGES = (
    "index.html",
    *(f"{name}/index.html" for name in ("methods", "claims", "methods/mda", "tutorial", "benchmarks")),
)
needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="needs a headless Chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("material", reason="the docs extra is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the docs extra is not installed")
    place = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


class Tables(html.parser.HTMLParser):
    """Counts the rows with cells of every table of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.rows.append(0)
        elif tag == "td" and self.rows:
            self.rows[-1] += 1


def test_it_asks_nobody_else_for_fonts(site: Path) -> None:
    pages = [page.read_text() for page in site.rglob("*.html")]
    assert len(pages) > 10 and not any("fonts.googleapis.com" in page for page in pages)


def test_no_table_is_empty_and_no_dictionary_is_printed(site: Path) -> None:
    for page in site.rglob("index.html"):
        text = page.read_text()
        tables = Tables()
        tables.feed(text)
        assert all(tables.rows), page
        prose = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r"\{(?:'|&#39;|&#x27;)[^'&<]*(?:'|&#39;|&#x27;): ", prose), page


def test_the_landing_page_has_a_picture_and_an_example(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert 'src="report.png"' in text and "upcycle" in text[text.index("<code>") :]
    assert text.index("tutorial/") > 0


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_needs_no_scrolling_sideways(site: Path, browser: Browser, page: str, width: int) -> None:
    seen = browser.visit(site / page, width)
    assert seen.page_width <= width and seen.errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in seen.requests)
