"""Fixtures of the tests of sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from filterdb.sources.cache import Cache
from filterdb.sources.origins import download
from tests.sources.loopback import Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", limit=None)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server on loopback; waits between tries are cut short."""
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve() as running:
        yield running
