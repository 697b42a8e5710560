"""Photograph the report of `make run` for the documentation: docs/report.png and docs/report-phone.png.

Run from the repository's root after `make run`: `python -m scripts.screenshot`. Needs Chromium.
"""

from pathlib import Path

from tests.browser import open_browser

REPORT = Path("runs/quickstart/report.html")


def main() -> None:
    """A desktop's first screens and a telephone's."""
    with open_browser() as browser:
        for name, width, height in (("report", 1200, 980), ("report-phone", 400, 900)):
            visit = browser.visit(REPORT, width, height=height, full=False)
            assert not visit.errors and not visit.outside
            (Path("docs") / f"{name}.png").write_bytes(visit.png)


if __name__ == "__main__":
    main()
