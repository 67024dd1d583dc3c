"""Filters of two files beside one another: upright, on one scale, one document."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from filterdb.report.palette import VIK, signed_levels
from filterdb.report.side_by_side import Pair, side_by_side
from pipelines.cli import main

_SVG = "{http://www.w3.org/2000/svg}"


def pictures(svg: str) -> list[np.ndarray]:
    """The pictures in a document, as red, green, blue."""
    found = [image.attrib["href"] for image in ET.fromstring(svg).iter(_SVG + "image")]
    raw = [base64.b64decode(uri.partition("base64,")[2]) for uri in found]
    return [np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")) for png in raw]


def test_the_first_row_of_a_kernel_is_on_top() -> None:
    kernel = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    svg = side_by_side(("a", "b"), [Pair(("x", "y"), (kernel, -kernel), 5.0, "equal")])
    first, second = pictures(svg)
    assert first.shape == (2, 3, 4)
    for picture, values in ((first, kernel[0]), (second, -kernel[0])):
        assert (picture[:, :, :3] == VIK[signed_levels(values, 5.0) - 1]).all()


def test_names_of_strangers_are_text() -> None:
    kernel = np.ones((1, 3, 3))
    hostile = "<script>\"&'</script>"
    pair = Pair((hostile, hostile), (kernel, kernel), 1.0, hostile)
    svg = side_by_side((hostile, hostile), [pair])
    assert not list(ET.fromstring(svg).iter(_SVG + "script"))
    assert "<script" not in svg


@pytest.mark.parametrize("kernel", [(5,), (3, 3), (1, 7), (3, 3, 3)])
def test_every_rank_is_drawn(kernel: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(20, *kernel))
    svg = side_by_side(("a", "b"), [Pair(("x", "y"), (values, values), 3.0, "equal")])
    one, other = pictures(svg)
    assert (one == other).all()


def test_compare_draws_what_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    before = {"a.weight": rng.normal(size=(4, 3, 3, 3)), "b.weight": rng.normal(size=(4, 4, 1, 1))}
    after = {**before, "a.weight": before["a.weight"].swapaxes(2, 3).copy()}
    for name, tensors in (("before", before), ("after", after)):
        save_file(tensors, str(tmp_path / f"{name}.safetensors"))
    files = [str(tmp_path / f"{name}.safetensors") for name in ("before", "after")]
    out = tmp_path / "both.svg"
    assert main(["compare", *files, "--picture", str(out)]) == 0
    svg = out.read_text()
    assert "rows and columns exchanged" in svg
    one, other = pictures(svg)
    assert (one[:3, :3] == other[:3, :3].swapaxes(0, 1)).all()
    assert len(re.findall("<image", svg)) == 2
    capsys.readouterr()
    pointwise = tmp_path / "pointwise.safetensors"
    save_file({"b.weight": before["b.weight"]}, str(pointwise))
    assert main(["compare", str(pointwise), str(pointwise), "--picture", str(out)]) == 1
    assert "nothing to draw" in capsys.readouterr().err
