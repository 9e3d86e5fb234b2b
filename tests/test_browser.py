"""The helper that watches pages must see what a page asks for, or the tests that use it prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import browser

pytestmark = pytest.mark.usefixtures("_browser")


@pytest.fixture
def _browser() -> None:
    browser.browser()


def test_every_kind_of_request_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "leaky.html"
    page.write_text(
        '<!doctype html><link rel="icon" href="data:,"><p>leaky</p>'
        '<link rel="stylesheet" href="https://fonts.example.invalid/a.css">'
        '<img src="http://pictures.example.invalid/x.png" alt=""><img src="neighbour.png" alt="">'
        '<script>fetch("https://count.example.invalid/hit").catch(() => 0)</script>'
    )
    seen = " ".join(browser.visit(page).requests)
    for part in ("fonts.example", "pictures.example", "neighbour.png", "count.example"):
        assert part in seen


def test_a_quiet_page_asks_for_nothing(tmp_path: Path) -> None:
    page = tmp_path / "quiet.html"
    page.write_text(
        '<!doctype html><link rel="icon" href="data:,"><p id="x"></p>'
        '<script>document.getElementById("x").textContent = "rendered" + 1</script>'
    )
    visit = browser.visit(page)
    assert visit.requests == ()
    assert "rendered1" in visit.dom


def test_no_browser_skips_or_fails_when_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "NAMES", ("no-such-browser",))
    monkeypatch.delenv(browser.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception):
        browser.browser()
    monkeypatch.setenv(browser.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception):
        browser.browser()
