from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from filterdb.report.build import build_report
from filterdb.report.model import ReportOptions
from filterdb.testing import failed_model, make_entries, make_model
from tests.report.report_stores import EVIL, Page, analyse, planted_model, write_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.store import Store


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Twenty-two analysed models, one planted, two that failed; a task of one model."""
    folder = tmp_path_factory.mktemp("demo") / "store"
    entries = list(make_entries(21))
    entries[3] = replace(entries[3], task="unknown", visual_category="unknown")
    planted = replace(entries[0], id="planted", name=EVIL, uri="file:x.npz", task="denoising")
    models = [(e, make_model(e)) for e in entries] + [(planted, planted_model(planted))]
    for i in (0, 1):
        broken = replace(entries[i], id=f"broken-{i}", uri=f"file:broken-{i}.npz")
        models.append((broken, failed_model(broken)))
    return analyse(write_store(folder, models))


@pytest.fixture(scope="session")
def report(demo: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report on `demo`, made on a fixed day."""
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    folder = tmp_path_factory.mktemp("report") / "report"
    build_report(demo, folder, options=ReportOptions())
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, or a reason to skip."""
    candidates = [os.environ.get("FILTERDB_CHROMIUM"), shutil.which("chromium"),
                  shutil.which("google-chrome"), shutil.which("chromium-browser")]  # fmt: skip
    program = next((c for c in candidates if c), None)
    if program is None:
        pytest.skip("no chromium or google-chrome on PATH, and FILTERDB_CHROMIUM is not set")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--headless=new", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    return Page
