"""A small store for reading tests, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from filterdb.store import Store, open_store
from filterdb.testing import make_store


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Seven models (float16, float32, float64), one of them failed. Read only."""
    return make_store(tmp_path_factory.mktemp("pristine"), n_models=8, n_failures=1)


@pytest.fixture
def spoilable(pristine: Store, tmp_path: Path) -> Store:
    """A copy that a test may damage."""
    shutil.copytree(pristine.path, tmp_path / "copy")
    return open_store(tmp_path / "copy")
