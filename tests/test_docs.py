"""What the README shows is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from filterdb.engine import Cluster
from filterdb.testing import make_store
from pipelines import analyse
from pipelines.arguments import build_parser
from pipelines.cli import COMMANDS
from pipelines.console import Console

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def command_lines() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line[2:].split("  #")[0] for line in lines if line.startswith("$ filterdb ")]


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line: str) -> None:
    words = shlex.split(line)[1:]
    words = words[: words.index(">")] if ">" in words else words
    options = build_parser().parse(words)
    assert options.command in COMMANDS


def test_every_command_is_shown() -> None:
    shown = {shlex.split(line)[1] for line in command_lines()}
    assert shown | {"demo", "cache"} >= set(COMMANDS)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    made = make_store(tmp_path, n_models=3, seed=2)
    analyse.run(
        made.path, by=None, compat=None, cluster=Cluster("sync"), console=Console(quiet=True)
    )
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "weight")
    node = onnx.helper.make_node("Conv", ["x", "weight"], ["y"], name="conv")
    value = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, c, 8, 8])
        for n, c in (("x", 3), ("y", 4))
    ]
    graph = onnx.helper.make_graph([node], "net", value[:1], value[1:], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)  # the README's own words
    assert names["store"].models.num_rows == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_no_machine_and_no_registry_is_named() -> None:
    forbidden = re.compile(
        "|".join(["python" + "hosted", r"npmjs\.", "/wor" + "k/", "/roo" + "t/"])
    )
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "catalogs").glob("*"),
        *ROOT.glob("filterdb/**/*.py"),
    ]:
        assert not forbidden.search(path.read_text(encoding="utf-8")), path
