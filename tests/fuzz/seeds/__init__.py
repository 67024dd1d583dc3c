"""Small valid files of every format; one module a format, named like it.

Each has ``seeds(folder)``, which may write into the folder and returns one mapping of names to
bytes per model (:data:`tests.fuzz.packing.Files`), the model's own file first. Small: every
truncation of them is read in the tests.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def formats_with_seeds() -> set[str]:
    names = (item.name for item in resources.files(__name__).iterdir())
    return {n.removesuffix(".py") for n in names if n.endswith(".py") and not n.startswith("_")}


def seeds_of(format_name: str) -> list[Files]:
    """Make the seeds of a format, each in an empty folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="filterdb-seeds-"))
    try:
        found: list[Files] = import_module(f"{__name__}.{format_name}").seeds(folder)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def files_of(path: Path, *others: Path) -> Files:
    """Read a model and its companions, which lie in its folder."""
    named = {path.name: path.read_bytes()}
    return named | {str(p.relative_to(path.parent)): p.read_bytes() for p in others}
