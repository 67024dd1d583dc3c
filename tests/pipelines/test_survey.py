"""A survey: what is read, what is not, and counts held against the list's."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from filterdb.work.survey import Sighting, SurveyTask, survey_file
from pipelines.survey_list import ListedFile, read_list
from tests.pipelines.command_line import Line
from tests.pipelines.models import write_models


@pytest.fixture
def line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(tmp_path / "cache", capsys)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three files: one as listed, one counted otherwise, one broken."""
    write_models(tmp_path / "models", n_models=2)
    # net-0: conv 4×3 and 8×4 of 3×3, up 4×8 of 5×5.
    rows = [
        ["uri", "listed_format", "listed_layers", "listed_3x3"],
        ["file:models/net-0.safetensors", "safetensors", "3", str(4 * 3 + 8 * 4)],
        ["file:models/net-1.safetensors", "safetensors", "2", "7"],
        ["file:models/broken.safetensors", "safetensors", "1", "1"],
    ]
    path = tmp_path / "list.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "rows.csv").read_text())))


def test_says_what_is_read_and_what_differs(line: Line, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = line("survey", str(listed), "--out", str(out), code=3)
    assert "read 2 of 3 files; counts as listed in 1 of 2" in told.err
    first, second, third = table(out)
    assert (first["read"], first["agrees"], first["layers"], first["filters_3x3"]) == (
        "yes",
        "yes",
        "3",
        "44",
    )
    assert (second["agrees"], second["explanation"]) == ("no", "")
    assert (third["read"], third["agrees"]) == ("no", "")
    assert third["reason"].startswith("MalformedFileError: ")
    page = (out / "README.md").read_text()
    assert "2 of 3 files read (66.7 %)" in page
    assert "not explained" in page


def test_notes_explain_and_give_the_layout(line: Line, listed: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.csv"
    notes.write_text("uri,explanation\nfile:models/net-1.safetensors,the list is | wrong\n")
    out = tmp_path / "out"
    line("survey", str(listed), "--out", str(out), "--notes", str(notes), code=3)
    assert table(out)[1]["explanation"] == "the list is | wrong"
    assert "the list is \\| wrong" in (out / "README.md").read_text()
    weights = np.arange(16 * 3 * 3 * 3, dtype=np.float32).reshape(16, 3, 3, 3)
    save_file({"conv.weight": weights}, str(tmp_path / "mlx.safetensors"))
    (tmp_path / "one.csv").write_text("uri,layout\nfile:mlx.safetensors,OHWI\n")
    line("survey", str(tmp_path / "one.csv"), "--out", str(out), code=0)
    assert table(out)[0]["filters_3x3"] == "48"


def test_the_written_list_gives_itself_again(line: Line, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line("survey", str(listed), "--out", str(out), code=3)
    before = (out / "rows.csv").read_bytes()
    # file: URIs are relative to the list.
    (tmp_path / "again.csv").write_bytes(before)
    line("survey", str(tmp_path / "again.csv"), "--out", str(tmp_path / "two"), code=3)
    assert (tmp_path / "two" / "rows.csv").read_bytes() == before


@pytest.mark.parametrize("workers", ["0", "2"])
def test_rows_do_not_depend_on_workers(
    line: Line, listed: Path, tmp_path: Path, workers: str
) -> None:
    line("survey", str(listed), "--out", str(tmp_path / "one"), code=3)
    line("survey", str(listed), "--out", str(tmp_path / "w"), "--workers", workers, code=3)
    assert (tmp_path / "w" / "rows.csv").read_bytes() == (tmp_path / "one/rows.csv").read_bytes()


def test_goes_on_where_it_was_stopped(line: Line, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    sighting = {"uri": "file:models/net-0.safetensors", "format": "from before", "n_layers": 99}
    cut = '[1, {"uri": "file:models/net-1.saf'
    (out / "survey.partial.jsonl").write_text(f"{json.dumps([0, sighting])}\n{cut}")
    told = line("survey", str(listed), "--out", str(out), code=3)
    assert "1 file kept from the run before" in told.err
    assert [row["layers"] for row in table(out)] == ["99", "3", ""]
    assert not (out / "survey.partial.jsonl").exists()


def test_a_fault_of_the_network_is_tried_again(line: Line, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri\nfile:nowhere.pt\n")
    line("survey", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), code=3)
    (row,) = table(tmp_path / "out")
    assert "nowhere.pt" in row["reason"]
    write_models(tmp_path / "m", n_models=1)
    (tmp_path / "m" / "net-0.safetensors").rename(tmp_path / "nowhere.pt")
    line("survey", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), code=0)


def test_package_columns_become_uris(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        "registry,package,version,archive_sha256,path_in_archive,format,n_conv_layers\n"
        f"pypi,some-net,1.0,{'0' * 64},a dir/50%.zip#/in#side?.pt,pytorch,4\n"
        "npm,@scope/net,2.0.0,,./package/model.json,tfjs,\n"
        "debian,pkg,3,,usr/x.h5,keras-h5,1\n"
    )
    first, second, third = read_list(path)
    assert first.uri == "pypi:some-net==1.0!/a dir/50%25.zip!/in%23side%3F.pt"
    assert (first.n_layers, first.format, first.archive_sha256) == (4, "pytorch", "0" * 64)
    assert second == ListedFile("npm:@scope/net@2.0.0!/package/model.json", format="tfjs")
    assert third.obstacle


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists no files"),
        ("a,b\n1,2\n", "neither a uri nor registry, package"),
        ("uri\n\nfile:x,\n,\n", "its uri is empty"),
        ("uri,listed_layers\nfile:x,many\n", "'many', expected a whole number"),
        ("uri,layout\nfile:x,OIWH\n", "layout 'OIWH', expected one of"),
    ],
)
def test_a_list_that_is_none_is_one_error(
    line: Line, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    told = line("survey", str(path), "--out", str(tmp_path / "out"), code=2)
    assert words in told.error
    line("survey", str(tmp_path / "no.csv"), "--out", str(tmp_path / "out"), code=2)


def test_a_note_on_a_file_not_listed_is_an_error(line: Line, listed: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.csv"
    notes.write_text("uri,explanation\nfile:other,why\n")
    told = line("survey", str(listed), "--out", str(tmp_path / "o"), "--notes", str(notes), code=2)
    assert "file:other" in told.error


def test_members_of_archives_are_tried_by_hash(line: Line, tmp_path: Path) -> None:
    write_models(tmp_path / "m", n_models=1)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(tmp_path / "m" / "net-0.safetensors", "w/net.safetensors")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    rows = f"uri,archive_sha256\nfile:a.zip!/w/net.safetensors,{digest}\n"
    (tmp_path / "list.csv").write_text(rows)
    line("survey", str(tmp_path / "list.csv"), "--out", str(tmp_path / "o"), code=0)
    (tmp_path / "list.csv").write_text(rows.replace(digest, "1" * 64))
    line("survey", str(tmp_path / "list.csv"), "--out", str(tmp_path / "o"), code=3)
    assert table(tmp_path / "o")[0]["reason"].startswith("HashMismatchError")


def test_non_finite_weights_are_counted(tmp_path: Path) -> None:
    weights = np.ones((4, 2, 3, 3), dtype=np.float32)
    weights[0, 0, 0, 0] = np.nan
    save_file({"c.weight": weights}, str(tmp_path / "nan.safetensors"))
    entry = ListedFile("file:nan.safetensors").entry(0, str(tmp_path))
    seen = survey_file(SurveyTask(entry, str(tmp_path / "cache")))
    assert seen == Sighting(
        entry.uri,
        format="safetensors",
        n_layers=1,
        n_filters_3x3=8,
        n_kernels=1,
        n_kernel_filters_3x3=8,
        n_nonfinite_layers=1,
        depth_source="registration",
    )


def test_other_ways_of_counting_are_named(line: Line, tmp_path: Path) -> None:
    """A difference that a known convention makes is explained by that convention alone."""
    rng = np.random.default_rng(2)

    def weights(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    tensors = {
        "bank.weight": weights(32, 1, 512),
        "a.weight": weights(16, 32, 3),
        "c.weight": weights(1, 16, 5),
    }
    save_file(tensors, str(tmp_path / "audio.safetensors"))
    lines = ["uri,listed_layers,listed_3x3", *(f"file:audio.safetensors,{n},0" for n in (3, 2, 1))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    line("survey", str(tmp_path / "list.csv"), "--out", str(tmp_path / "o"))
    explained = [row["explanation"] for row in table(tmp_path / "o")]
    assert explained == [
        "",
        "the list leaves out kernels longer than 64",
        "the list leaves out kernels longer than 64; "
        "the list leaves out 1-D layers of one output channel",
    ]
    page = (tmp_path / "o" / "README.md").read_text()
    assert "are those the list gives in 1 of 3 (33.3 %); 2 of the 2" in page
    assert "In 3 (100.0 %) they are" in page
