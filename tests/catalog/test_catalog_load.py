"""Catalogues: what loads, and what is said of those that do not."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.catalog import (
    Catalogue,
    Entry,
    catalogue_names,
    load_catalogue,
    load_vocabulary,
    to_toml,
)
from filterdb.catalog.validate import KEYS, is_slug
from filterdb.errors import CatalogError, UnknownNameError

SHA = "0123456789abcdef" * 4
CONTRACT = """
    id uri format archive_sha256 bytes name architecture family task visual_category
    training_dataset pretraining_dataset licence_package licence_weights paper note
    label_source layout transposed companions
"""
HEAD = '[catalogue]\nname = "small"\ntitle = "Small"\n\n'


def write(folder: Path, text: str, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_are_those_of_the_contract() -> None:
    assert set(KEYS) == set(CONTRACT.split())


@pytest.mark.parametrize("name", sorted(catalogue_names()))
def test_every_shipped_catalogue_loads(name: str) -> None:
    catalogue = load_catalogue(name)
    assert catalogue.name == name
    assert len({entry.id for entry in catalogue.entries}) == len(catalogue.entries) > 0
    assert all(entry.catalogue == name for entry in catalogue.entries)


def test_demo_is_found_by_name_and_is_the_file_s_content() -> None:
    catalogue = load_catalogue("demo")
    assert catalogue.sha256 == hashlib.sha256(Path(catalogue.path).read_bytes()).hexdigest()
    words = load_vocabulary()
    assert {entry.task for entry in catalogue.entries} <= set(words.task)
    assert {entry.visual_category for entry in catalogue.entries} <= set(words.visual_category)


def test_an_entry_takes_its_defaults(tmp_path: Path) -> None:
    text = HEAD + f'[[model]]\nid = "a"\nuri = "file:m.pt"\narchive_sha256 = "{SHA}"\nbytes = 5\n'
    (entry,) = load_catalogue(write(tmp_path, text)).entries
    assert entry == Entry(
        id="a",
        uri="file:m.pt",
        catalogue="small",
        archive_sha256=SHA,
        bytes=5,
        name="a",
        base=str(tmp_path),
    )


@pytest.mark.parametrize(
    ("line", "message", "number"),
    [
        ('taks = "ocr"', r"unknown key 'taks' \(nearest: task", 9),
        ('task = "orc"', r"task = 'orc' is not in the vocabulary \(nearest: ocr", 9),
        ('visual_category = "face"', "nearest: faces", 9),
        ("bytes = -1", "whole number", 9),
        ("bytes = true", "whole number", 9),
        ('bytes = "5"', "whole number", 9),
        ("task = 5", r"task must be a text, got 5 \(int\)", 9),
        ('training_dataset = "COCO"', "list of texts", 9),
        ("training_dataset = [1]", "list of texts", 9),
        ('archive_sha256 = "abc"', "64 lower-case", 9),
        (f'archive_sha256 = "{SHA.upper()}"', "64 lower-case", 9),
        ('layout = "OHIW"', "unknown layout 'OHIW' .*OIHW", 9),
        ('format = "pytorch"', "unknown format 'pytorch' .*torch", 9),
        ('licence_weights = "see: file"', "SPDX", 9),
        ('companions = ["../x.bin"]', "plain relative path", 9),
    ],
)
def test_a_bad_key_is_named_with_its_line(
    tmp_path: Path, line: str, message: str, number: int
) -> None:
    good = '[[model]]\nid = "a"\nuri = "file:a.pt"\n'
    text = HEAD + good + line + "\n"
    number = text.splitlines().index(line) + 1
    path = write(tmp_path, text)
    with pytest.raises(CatalogError, match=message) as caught:
        load_catalogue(path)
    assert f"{path}:{number}: model 'a': " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[model]]\nid = "A b"\nuri = "file:a"\n', "not a slug"),
        ('[[model]]\nid = ".."\nuri = "file:a"\n', "not a slug"),
        ('[[model]]\nid = "a"\n', "model 'a': has no uri"),
        ('[[model]]\nuri = "file:a"\n', "model 1: has no id"),
        ('[[model]]\nid = "a"\nuri = "pipy:a==1"\n', "nearest: pypi"),
        ('[[model]]\nid = "a"\nuri = "pypi:a"\n', "NAME==VERSION"),
        ('[[models]]\nid = "a"\nuri = "file:a"\n', "unknown table 'models' .*model"),
        ("", "holds no model"),
        ("model = 3\n", r"\[\[model\]\] tables"),
        ("[[model]\n", "not TOML"),
        ('[catalogue]\ntitel = "x"\n', "unknown key 'titel' .*title"),
        ('[catalogue]\nname = "A B"\n', "not a slug"),
        ("[catalogue]\ntitle = 3\n", "title must be a text"),
    ],
)
def test_a_bad_catalogue_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        load_catalogue(write(tmp_path, text))


def test_a_duplicate_id_is_refused_with_its_line(tmp_path: Path) -> None:
    model = '[[model]]\nid = "a"\nuri = "file:a"\n'
    path = write(tmp_path, HEAD + model + model)
    with pytest.raises(CatalogError, match=r"small.toml:9: model 'a': id 'a' is that of entry 1"):
        load_catalogue(path)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = "".join(f'[[model]]\nid = "m{i}"\nuri = "file:a"\ntask = "x{i}"\n' for i in range(20))
    with pytest.raises(CatalogError) as caught:
        load_catalogue(write(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert len(lines) == 13
    assert lines[-1] == "and 8 more problems"


def test_unknown_names_list_the_catalogues(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nearest: demo"):
        load_catalogue("dmeo")
    with pytest.raises(CatalogError, match="catalog scan"):
        load_catalogue(tmp_path)


def test_not_utf8_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogError, match="UTF-8"):
        load_catalogue(path)


def test_csv_has_the_same_keys_and_lists_by_semicolon(tmp_path: Path) -> None:
    text = (
        "id,uri,bytes,task,training_dataset,paper\n"
        'a,file:a.pt,12,ocr,"COCO; WIDER, FACE",\n'
        "b,file:b.pt,,,,x\n"
    )
    catalogue = load_catalogue(write(tmp_path, text, "My Family.csv"))
    assert catalogue.name == "my-family"
    first, second = catalogue.entries
    assert (first.bytes, first.task, first.paper) == (12, "ocr", None)
    assert first.training_dataset == ("COCO", "WIDER, FACE")
    assert (second.bytes, second.task, second.training_dataset) == (None, "unknown", ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,uri,taks\na,file:a,\n", r":2: model 'a': unknown key 'taks' \(nearest: task"),
        ("id,uri\na,file:a\na,file:b\n", ":3: model 'a': id 'a' is that of entry 1"),
        ("id,uri,bytes\na,file:a,many\n", "whole number"),
        ("id,uri\na\n", ":2: 1 fields, the header has 2"),
        ("id,id,uri\na,a,file:a\n", "twice in the header"),
        ("id,uri\n", "holds no model"),
        ('id,uri\n"a,file:a\n', "not CSV"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        load_catalogue(write(tmp_path, text, "x.csv"))


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
entries = st.builds(
    Entry,
    id=st.from_regex(r"[a-z0-9._-]{1,9}", fullmatch=True).filter(is_slug),
    uri=st.just("file:m.pt"),
    catalogue=st.just("made"),
    archive_sha256=st.sampled_from([None, SHA]),
    bytes=st.none() | st.integers(0, 2**63 - 1),
    name=texts,
    architecture=texts,
    task=st.sampled_from(["unknown", "ocr"]),
    training_dataset=st.lists(texts, max_size=3).map(tuple),
    paper=st.none() | texts,
    note=st.none() | texts,
    layout=st.sampled_from(["auto", "OHWI"]),
    transposed=st.lists(texts, max_size=2).map(tuple),
)


@given(st.lists(entries, min_size=1, max_size=4, unique_by=lambda entry: entry.id))
def test_a_written_catalogue_reads_back_as_itself(
    tmp_path_factory: pytest.TempPathFactory, made: list[Entry]
) -> None:
    folder = tmp_path_factory.mktemp("written")
    catalogue = Catalogue(
        name="made",
        title='Made \\ "up"\x7f',
        description="",
        entries=tuple(dataclasses.replace(entry, base=str(folder)) for entry in made),
        path="",
        sha256="",
    )
    path = folder / "made.toml"
    path.write_text(to_toml(catalogue), encoding="utf-8", newline="")
    read = load_catalogue(path)
    assert (read.name, read.title, read.entries) == ("made", catalogue.title, catalogue.entries)
