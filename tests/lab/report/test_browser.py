"""The page in a real browser, and what `scripts/check_page.py` finds wrong with other pages."""

from __future__ import annotations

import pytest

import check_page
from check_page import Seen, browse, faults, requests_in
from lrft.lab.report.report import report

BROWSER = check_page.find_browser()
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

CHART = '<svg viewBox="0 0 560 220" aria-label="loss"><polyline points="58,10 60.5,20"></polyline></svg>'
WRONG = """<!DOCTYPE html><link rel="stylesheet" href="other.css"><img src="http://example.com/a.png">
<svg viewBox="0 0 560 220" aria-label="loss"></svg>
<script>console.error("oh no"); fetch("https://example.org/x").catch(() => {}); nothing();</script>"""


@in_browser
def test_the_page_of_a_run_is_drawn_and_asks_for_nothing(looked_at, tmp_path, capsys):
    report([looked_at], tmp_path / "r.html")
    check_page.main([str(tmp_path / "r.html"), "--png", str(tmp_path / "r.png")])
    assert "drawn as it should be" in capsys.readouterr().out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "r.png"
    ).stat().st_size > 20_000


@in_browser
@pytest.mark.slow
def test_three_runs_are_drawn_on_shared_axes_by_day_and_by_night(looked_at, trained, copied, tmp_path):
    report([looked_at, trained("dora"), copied(looked_at)], tmp_path / "r.html")
    pictures = []
    for dark in (False, True):
        seen = browse(BROWSER, tmp_path / "r.html", tmp_path / f"{dark}.png", dark)
        assert faults(seen) == [] and seen.page.count("<polyline") >= 12
        pictures.append((tmp_path / f"{dark}.png").read_bytes())
    assert pictures[0] != pictures[1]


@in_browser
@pytest.mark.slow
def test_a_browser_shows_what_is_wrong_with_a_page(tmp_path, capsys):
    (tmp_path / "wrong.html").write_text(WRONG)
    with pytest.raises(SystemExit) as ended:
        check_page.main([str(tmp_path / "wrong.html")])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    for fault in (
        'the console says "oh no"',
        "nothing is not defined",
        "the page asks for http://example.com/a.png",
        "the page asks for https://example.org/x",
        "the page loads link href=other.css",
        "the chart 'loss' has no point",
    ):
        assert fault in said


def test_every_fault_of_a_page_is_a_line():
    def found(page: str) -> list[str]:
        return faults(Seen(page, [], []))

    assert found(CHART) == []
    assert faults(Seen(CHART, ["so"], ["http://a"])) == ["the console says so", "the page asks for http://a"]
    assert found("<p>nothing</p>") == ["the page has no chart"]
    assert found(CHART.replace("58,10 60.5,20", "")) == ["the chart 'loss' has no point"]
    for outside in ("570,10", "58,-1", "nan,10"):
        assert found(CHART.replace("58,10", outside)) == ["the chart 'loss' has a point outside"]
    for loads in (
        '<script src="a.js"></script>',
        '<style>p { background: url("a.png") }</style>',
        "<p style=\"background: url('a.png')\"></p>",
    ):
        assert len(found(CHART + loads)) == 1
    assert found(CHART + '<a href="http://a">a</a><img src="data:image/png;base64,AA">') == []


def test_what_the_browser_asks_of_its_own_is_no_request_of_the_page():
    events = [
        {"params": {"url": "https://own", "initiator": "not an origin"}},
        {"params": {"url": "http://page", "initiator": "null"}},
        {"params": {"url": "http://other"}},
        {"type": 1},
    ]
    assert requests_in({"events": events}) == ["http://page"]


def test_without_a_browser_it_is_told(tmp_path):
    with pytest.raises(SystemExit, match="there is no none_such here"):
        check_page.main([str(tmp_path / "r.html"), "--browser", "none_such"])
