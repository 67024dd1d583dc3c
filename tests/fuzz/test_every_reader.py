"""Laws every reader keeps, whatever the bytes: one module for all formats, from their seeds.

Each run is under :mod:`tests.fuzz.oracle`: only SourceError types, nothing opened, imported or
executed, and an end within ten seconds.
"""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.sources.formats import FORMATS, ModelFile, detect
from tests.fuzz.archives import check_archive
from tests.fuzz.mutation import mutate
from tests.fuzz.oracle import GUARDED, Outcome, check
from tests.fuzz.packing import Files, pack, unpack, write
from tests.fuzz.seeds import formats_with_seeds, seeds_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Containers are no format, but read strangers' bytes, too.
TARGETS = (*FORMATS, "containers")
#: Files of that many bytes are cut at each of them, larger ones at the ends and in places between.
EVERY_BYTE = 160


@functools.cache
def seeds(name: str) -> list[Files]:
    return seeds_of(name)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for thousands of runs, in memory where there is such a place."""
    shm = Path("/dev/shm")
    found = Path(tempfile.mkdtemp(prefix="filterdb-", dir=shm if shm.is_dir() else None))
    yield found / "input"
    shutil.rmtree(found, ignore_errors=True)


def read(name: str, files: Files, folder: Path) -> Outcome:
    if name == "containers":
        return Outcome(check_archive(files, folder))
    return check(name, files, folder)


def test_no_format_is_forgotten() -> None:
    assert formats_with_seeds() == {*FORMATS, "containers"}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str, folder: Path) -> None:
    for files in seeds(name):
        assert read(name, files, folder).kind == "read"
        if name != "containers":
            path = write(files, folder)
            assert detect(ModelFile(path, {}, path.name)) == name


def cuts(size: int, *, few: bool) -> list[int]:
    if few:
        return sorted({0, 1, 8, 9, 64, size // 2, size - 1} & set(range(size)))
    if size <= EVERY_BYTE:
        return list(range(size))
    ends = [*range(40), *range(size - 40, size)]
    return sorted({*ends, *random.Random(size).sample(range(size), 60)})


@pytest.mark.parametrize("name", TARGETS)
def test_files_cut_short(name: str, folder: Path) -> None:
    for files in seeds(name):
        for part, data in files.items():
            for cut in cuts(len(data), few=name in GUARDED):
                read(name, files | {part: data[:cut]}, folder)
            without = {other: files[other] for other in files if other != part}
            if without:
                read(name, without, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_files_cut_at_every_byte(name: str, folder: Path) -> None:
    for files in seeds(name):
        for part, data in files.items():
            for cut in range(0, len(data), 1 + len(data) // 4096):
                read(name, files | {part: data[:cut]}, folder)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bits_and_absurd_numbers(name: str, folder: Path, data: Any) -> None:
    files = dict(data.draw(st.sampled_from(seeds(name)), label="seed"))
    part = data.draw(st.sampled_from([p for p in files if files[p]]), label="file")
    changed = bytearray(files[part])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        width = data.draw(st.sampled_from((1, 1, 2, 4, 8)))
        number = data.draw(st.one_of(st.integers(0, 255), st.integers(0, (1 << 64) - 1)))
        word = (number % (1 << (8 * width))).to_bytes(width, "little")
        changed[at : at + width] = word[: len(changed) - at]
    read(name, files | {part: bytes(changed)}, folder)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(number=st.integers(0, 1 << 32))
def test_damage_inside_the_structure(name: str, folder: Path, number: int) -> None:
    """Members, fields and values changed, lengths and checksums right."""
    packed = [pack(files) for files in seeds(name)]
    files = unpack(packed[number % len(packed)], "model")
    first = next(iter(files))

    def native(data: bytes, limit: int) -> bytes:
        return data[::-1][:limit]

    data = mutate(pack(files), limit=20_000, seed=number, native=native, default=first)
    read(name, unpack(data, first), folder)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25)
@given(head=st.integers(0, 64), data=st.binary(max_size=300))
def test_arbitrary_bytes(name: str, folder: Path, head: int, data: bytes) -> None:
    """Also behind the first bytes of a file of the format."""
    files = seeds(name)[len(data) % len(seeds(name))]
    first = next(iter(files))
    read(name, files | {first: files[first][:head] + data}, folder)


@pytest.mark.parametrize("name", TARGETS)
def test_files_of_other_formats(name: str, folder: Path) -> None:
    for other in TARGETS:
        if other != name:
            files = seeds(other)[0]
            assert read(name, files, folder).kind != "nothing"
