"""Memory above the imports stays below twice the file plus 256 MB, whatever the file is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from filterdb.sources.formats import FORMATS
from tests.fuzz.hostile import HOSTILE
from tests.fuzz.oracle import MEMORY_FACTOR, MEMORY_SLACK
from tests.fuzz.peak import peaks

if TYPE_CHECKING:
    from pathlib import Path

#: Where a bound counts records, a file just below it takes the most: several sizes, then.
SIZES = (400_000, 1_500_000, 6_000_000)
#: Of processor time; a child on a busy machine takes far longer.
SECONDS = 60


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted({format_name for format_name, _ in HOSTILE}))
def test_a_million_small_records(tmp_path: Path, name: str, size: int) -> None:
    chosen = {what: build for (of, what), build in HOSTILE.items() if of == name}
    cases = [(name, build(size)) for build in chosen.values()]
    found = list(peaks(cases, tmp_path))
    for what, (_, files), peak in zip(chosen, cases, found, strict=True):
        bound = MEMORY_FACTOR * sum(map(len, files.values())) + MEMORY_SLACK
        assert peak.taken <= bound, f"{what}: {peak}"
        assert peak.seconds < SECONDS, f"{what}: {peak}"
        assert peak.outcome.startswith(("read ", "Un", "Malformed", "Missing", "Layer")), what


def test_every_format_has_a_file_of_small_records() -> None:
    # HDF5 is listed by a child whose address space is bounded; see hdf5_guard.
    assert {name for name, _ in HOSTILE} >= set(FORMATS) - {"keras_h5"}
