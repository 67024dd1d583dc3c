"""The import rules of the architecture, checked by reading the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "filterdb").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])

#: Lower rows may be imported by higher ones, siblings not by one another.
ROWS = (
    {"types", "errors", "lazy", "_version"},
    {"files"},
    {"catalog", "layers", "stats", "metrics"},
    {"sources", "store"},
    {"analysis", "activations"},
    {"work", "report", "engine"},
    {"testing"},
)
RANK = {part: rank for rank, row in enumerate(ROWS) for part in row}

#: metrics are the pure functions a state's numbers come from, so stats may call them; inspect's
#: records need no other exceptions.
SIBLINGS = {("stats", "metrics"), ("metrics", "stats")}

#: Heavy library → where it may be imported at all.
HOMES = {
    "dask": ("filterdb/engine/", "filterdb/store/"),
    "distributed": ("filterdb/engine/",),
    "duckdb": ("filterdb/store/", "filterdb/catalog/select.py"),
    "h5py": ("filterdb/store/", "filterdb/sources/formats/"),
    "numba": ("filterdb/stats/kernels.py",),
    "torch": ("filterdb/sources/", "filterdb/activations/"),
    "timm": ("filterdb/sources/", "filterdb/activations/"),
    "onnx": ("filterdb/sources/", "filterdb/activations/"),
    "altair": ("filterdb/report/",),
    "vl_convert": ("filterdb/report/",),
    "PIL": ("filterdb/report/", "filterdb/activations/"),
    "jinja2": ("filterdb/report/",),
    "rich": ("pipelines/",),
}
#: Never imported when a module of ours is imported, only inside functions.
LAZY = {"torch", "timm", "onnx", "duckdb", "dask", "distributed", "numba", "huggingface_hub"}


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Yield (module, at module level, line) for every import that runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, top, child.lineno
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                module = child.module or ""
                yield module, top, child.lineno
                for alias in child.names:
                    yield f"{module}.{alias.name}", top, child.lineno
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, top and not is_function)

    yield from walk(tree, True)


def part_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "pipelines" if parts[0] == "pipelines" else parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(path)
    if part in ("pipelines", "__init__"):
        return
    assert part in RANK, f"{part} has no row in the architecture"
    for module, _, line in imports(path):
        words = module.split(".")
        assert words[0] != "pipelines", f"{path}:{line}: the library must not import the jobs"
        if words[0] != "filterdb" or len(words) < 2 or words[1] == part or words[1] not in RANK:
            continue
        allowed = RANK[words[1]] < RANK[part] or (part, words[1]) in SIBLINGS
        assert allowed, f"{path}:{line}: {part} must not import {words[1]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_stay_home(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for module, top, line in imports(path):
        library = module.split(".")[0]
        homes = HOMES.get(library)
        if homes is not None:
            assert name.startswith(homes), f"{name}:{line}: {library} belongs in {homes}"
        assert not (top and library in LAZY), f"{name}:{line}: import {library} inside a function"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= 420, f"{path.relative_to(ROOT)} has {n_lines} lines"


def test_importing_filterdb_imports_nothing_heavy() -> None:
    code = "import sys, filterdb; print(*sorted(m.split('.')[0] for m in sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert not loaded & {*LAZY, "numpy", "pandas", "pyarrow", "h5py", "scipy", "sklearn"}
