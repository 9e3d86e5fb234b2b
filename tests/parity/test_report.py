"""The report's page: it renders, says the verdict in words, and asks for nothing outside itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from exporter.parity import Report
from exporter.parity.report.html import size, write_html
from exporter.parity.report.svg import curve, histogram
from tests.browser import visit
from tests.parity.conftest import JudgeTorch


def shift(module: nn.Module) -> None:
    layer = module.inner.get_submodule("mid_block.resnets.0.conv2")
    layer.bias.data = layer.bias.data + 0.01


def test_the_page_of_a_pass(judge_torch: JudgeTorch, tmp_path: Path) -> None:
    report = judge_torch(pipeline=True)
    seen = visit(tmp_path / "artifact" / "verification" / "report.html")
    assert seen.requests == ()
    assert 'data-verdict="PASS"' in seen.dom
    assert report.summary in seen.dom
    for component in report.components:
        assert f'data-component="{component.name}"' in seen.dom
    assert seen.dom.count("data:image/png;base64,") == 3
    assert "<polyline" in seen.dom and "<rect" in seen.dom
    assert report.digest in seen.dom and "exporter verify" in seen.dom


def test_the_page_of_a_fail_names_the_module(judge_torch: JudgeTorch, tmp_path: Path) -> None:
    report = judge_torch(components=["unet"], faults={"unet": shift})
    text = (tmp_path / "artifact" / "verification" / "report.html").read_text()
    assert report.components[0].bisection is not None
    assert 'data-verdict="FAIL"' in text
    assert re.search(r'class="first-bad".*?<code>mid_block\.resnets\.0\.conv2</code>', text, re.DOTALL)
    assert "<script" not in text and "http://" not in text and "https://" not in text


def test_text_from_outside_is_escaped(judge_torch: JudgeTorch, tmp_path: Path) -> None:
    judge_torch(components=["text_encoder"], prompts=["<script>alert(1)</script>"], pipeline=True)
    text = (tmp_path / "artifact" / "verification" / "report.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text


def test_a_picture_path_that_leaves_the_folder_is_not_read(judge_torch: JudgeTorch, tmp_path: Path) -> None:
    judge_torch(components=["text_encoder"], pipeline=True)
    folder = tmp_path / "artifact" / "verification"
    report = Report.load(folder)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    assert report.pipeline is not None
    for picture in report.pipeline.runs[0].paintings:
        picture.pictures = {"reference": "../../secret.png"}
    write_html(report, folder)
    assert "data:image" not in (folder / "report.html").read_text()


def test_drawings_survive_odd_values() -> None:
    assert curve([("artifact", [None, float("nan"), 0.0])]) == ""
    assert "<circle" in curve([("artifact", [None, 1e-6, float("inf")])])
    assert histogram([1e-12], [0, 0, 0], [0, 0, 0]) == ""
    assert histogram([1e-12], [1, 0, 2], [0, 1, 0]).count("<rect") == 3


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (1500, "1.5 KB"), (3.4e9, "3.40 GB"), (2e13, "20000.00 GB")]
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text
