"""`report.html` in a real browser: it renders, it says the verdict, and nothing leaves the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests import browser
from tests.demo.pages import read
from tests.parity.conftest import JudgeTorch

PROMPT = 'a <script>alert("ring")</script> & star'


def _silence(module: nn.Module) -> None:
    nn.init.zeros_(next(p for name, p in module.named_parameters() if name.endswith("conv_in.weight")))


@pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
def test_the_page_says_the_verdict_and_stands_alone(
    judge_torch: JudgeTorch, tmp_path: Path, verdict: str
) -> None:
    faults = {"unet": _silence} if verdict == "FAIL" else {}
    report = judge_torch(pipeline=True, prompts=[PROMPT], faults=faults)
    assert report.verdict == verdict and report.pipeline is not None
    page = tmp_path / "artifact" / "verification" / "report.html"
    visit = browser.visit(page)
    assert visit.requests == ()
    seen = read(visit.dom)
    assert all(address.startswith(("data:", "#")) for address in seen.addresses)
    assert all(element.tag != "script" for element in seen.elements)
    assert report.summary in seen.text and PROMPT in seen.text
    said = {e.attributes["data-verdict"] for e in seen.elements if "data-verdict" in e.attributes}
    assert verdict in said
    components = [e.attributes["data-component"] for e in seen.elements if "data-component" in e.attributes]
    assert components == [component.name for component in report.components]
    assert len(seen.images) == sum(
        len(painting.pictures) for run in report.pipeline.runs for painting in run.paintings
    )
    assert seen.images and all(alt for alt, _ in seen.images)
