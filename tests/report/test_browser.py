"""The page in a browser: nothing on the console, nothing loaded, nothing that overflows or overlaps."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, found
from synthetic import folder, observed, run, study

from spikedistill.report.page import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(found() is None, reason="no Chromium (Debian: apt-get install chromium)"),
]
OPEN = "document.querySelectorAll('details').forEach(d => d.open = true)"
TOUCHING = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const ticks = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return ticks.flatMap(([a, p], i) => ticks.slice(i + 1).filter(([b, q]) =>
    p.left < q.right - .5 && q.left < p.right - .5 && p.top < q.bottom - 3 && q.top < p.bottom - 3
  ).map(([b]) => `${svg.getAttribute('aria-label').slice(0, 40)}: ${a} on ${b}`));
})"""
CUT = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(t => {
    const r = t.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1
      || r.top < box.top - 1 || r.bottom > box.bottom + 1;
  }).map(t => `${svg.getAttribute('aria-label').slice(0, 40)}: ${t.textContent}`);
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    long = run(1, title="A_title_of_one_long_word_that_cannot_be_broken_anywhere_by_any_rule")
    for stage in long.stages:
        stage.name = f"{stage.name}_with_a_name_much_longer_than_others"
        for layer in stage.layers:
            layer.path = f"blocks.11.attention.projection_{layer.path}"
        stage.accuracy_at = {1: 0.1, 2: 0.7} | {2**k: 0.9 for k in range(2, 9)} if stage.layers else {}
    return {
        "one": write_report(observed(folder(base / "one", run(0)))),
        "long": write_report(folder(base / "long", long)),
        "both": write_report(
            [study(base / "a"), study(base / "b", title="Wider", shift=0.02)], base / "both.html"
        ),
    }


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    program = found()
    assert program is not None
    with browser(program) as one:
        yield one


@pytest.mark.parametrize("name", ["one", "long", "both"])
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)])
def test_the_page_fits_says_nothing_and_loads_nothing(
    window: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    window.open(pages[name], width, dark)
    for state in ("folded", "open"):
        assert window.value("document.documentElement.scrollWidth") <= width, state
        window.value(OPEN)
    assert window.value(TOUCHING) == []
    assert window.value(CUT) == []
    assert window.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)"
    )
    assert window.said() == []
    assert window.requests() == [pages[name].resolve().as_uri()]


def test_contents_stay_in_view_and_open_what_is_folded(window: Browser, pages: dict[str, Path]) -> None:
    for width in (400, 1400):
        window.open(pages["one"], width)
        assert not window.value("document.querySelector('#confusion').closest('details').open")
        window.value("document.querySelector('nav a[href=\"#confusion\"]').click()")
        assert window.value("document.querySelector('#confusion').closest('details').open")
        window.value("document.documentElement.style.scrollBehavior = 'auto'; scrollTo(0, 1e6)")
        top, bottom = window.value(
            "(r => [r.top, r.bottom])(document.querySelector('nav').getBoundingClientRect())"
        )
        assert 0 <= top < bottom <= 900


def test_the_page_is_short_until_more_is_asked(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["one"], 1400)
    folded = window.value("document.documentElement.scrollHeight")
    window.value(OPEN)
    assert folded < 0.6 * window.value("document.documentElement.scrollHeight")
