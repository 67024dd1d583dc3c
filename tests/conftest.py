"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine, so that a green run stays green; HYPOTHESIS_PROFILE=explore
# looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def shared_cache() -> Path | None:
    """The cache for tests that fetch real packages: the user's own, so that nothing comes twice."""
    given = os.environ.get("FILTERDB_CACHE")
    return Path(given) if given else None


@pytest.fixture(autouse=True, scope="session")
def _no_hub() -> None:
    """Keep libraries from asking model hubs unless a test serves one on loopback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
