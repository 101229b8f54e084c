"""Open a page of `lrft report` in headless Chromium, without a network, and look at what becomes of it.

    python scripts/check_page.py report.html [--png FILE] [--dark] [--size 1280x4000] [--browser chromium]

Exits with 1, a line a fault, where the console says anything, where the page asks for anything beside itself, and
where a chart is missing or empty. Without `--png` no picture is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
).split()
NOWHERE = "--host-resolver-rules=MAP * ~NOTFOUND"  # no name is found
ITS_OWN = "not an origin"  # who asks where the browser does, and no page
CONSOLE = re.compile(r"CONSOLE[:(]\d+\)?\] (.*)")
LOADING = {"src", "srcset", "data", "poster", "background"}
OF_STYLE = re.compile(r"@import|url\(")


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page: its elements once scripts have run, the console, what was asked for."""

    page: str
    console: list[str]
    requests: list[str]


def find_browser(name: str | None = None) -> str | None:
    """The path of the browser; None where there is none."""
    return next((found for one in ([name] if name else BROWSERS) if (found := shutil.which(one))), None)


def browse(
    browser: str, page: Path, png: Path | None = None, dark: bool = False, size: str = "1280x4000"
) -> Seen:
    """Open the page and wait until it is drawn."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        picture = (png or Path(folder) / "page.png").resolve()
        more = [
            f"--user-data-dir={folder}/profile",
            f"--log-net-log={log}",
            f"--window-size={size.replace('x', ',')}",
        ]
        more += ["--blink-settings=preferredColorScheme=0"] if dark else []
        command = [
            browser,
            *QUIET,
            NOWHERE,
            *more,
            f"--screenshot={picture}",
            "--dump-dom",
            page.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode or not picture.is_file():
            raise SystemExit(f"{browser} ended with {done.returncode}: {done.stderr[-2000:]}")
        said = [found[1] for line in done.stderr.splitlines() if (found := CONSOLE.search(line))]
        return Seen(done.stdout, said, requests_in(json.loads(log.read_text())))


def requests_in(log: dict) -> list[str]:  # type: ignore[type-arg]
    """The addresses that a page asked for, in a log of the browser's network."""
    held = (event.get("params") for event in log["events"])
    asked = [one for one in held if isinstance(one, dict) and one.get("initiator", ITS_OWN) != ITS_OWN]
    return list(dict.fromkeys(one["url"] for one in asked))


class _Page(HTMLParser):
    """Charts with the points of their curves, and what is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts: list[tuple[str, list[float], list[str]]] = []  # title, view box, points of each curve
        self.loaded: list[str] = []
        self.style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        self.style = tag == "style"
        if tag == "svg":
            box = [float(one) for one in held.get("viewbox", "0 0 0 0").split()]
            self.charts.append((held.get("aria-label", "without a name"), box, []))
        elif tag in ("polyline", "polygon") and self.charts:
            self.charts[-1][2].append(held.get("points", ""))
        wanted = LOADING if tag != "link" else {*LOADING, "href"}
        self.loaded += [
            f"{tag} {name}={held[name]}"
            for name in wanted & held.keys()
            if not held[name].startswith("data:")
        ]
        self.loaded += [f"{tag} style={held['style']}"] if OF_STYLE.search(held.get("style", "")) else []

    def handle_endtag(self, tag: str) -> None:
        self.style = False

    def handle_data(self, data: str) -> None:
        if self.style and OF_STYLE.search(data):
            self.loaded.append("style that loads something")


def faults(seen: Seen) -> list[str]:
    """What is wrong with the page, a line a fault."""
    page = _Page(seen.page)
    found = [f"the console says {line}" for line in seen.console]
    found += [f"the page asks for {url}" for url in seen.requests]
    found += [f"the page loads {what}" for what in page.loaded]
    if not page.charts:
        found.append("the page has no chart")
    for title, (*_, width, height), curves in page.charts:
        places = [pair.split(",") for points in curves for pair in points.split()]
        if not places:
            found.append(f"the chart {title!r} has no point")
        elif not all(_within(x, width) and _within(y, height) for x, y in places):
            found.append(f"the chart {title!r} has a point outside")
    return found


def _within(place: str, size: float) -> bool:
    return math.isfinite(float(place)) and 0 <= float(place) <= size


def main(arguments: list[str] | None = None) -> None:
    """Check one page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--png", type=Path, help="file for a picture of the page")
    parser.add_argument("--dark", action="store_true", help="as who prefers dark pages sees it")
    parser.add_argument("--size", default="1280x4000", help="of the window, in pixels")
    parser.add_argument("--browser", help=f"command; by default the first of {', '.join(BROWSERS)}")
    options = parser.parse_args(arguments)
    browser = find_browser(options.browser)
    if browser is None:
        raise SystemExit(f"there is no {options.browser or ' and no '.join(BROWSERS)} here; install one")
    found = faults(browse(browser, options.page, options.png, options.dark, options.size))
    for fault in found:
        print(f"{options.page}: {fault}", file=sys.stderr)
    if found:
        raise SystemExit(1)
    print(f"{options.page}: drawn as it should be")


if __name__ == "__main__":
    main()
