"""``catalog scan``: a catalogue from a folder of checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save

from filterdb.catalog import load_catalogue, to_toml
from filterdb.errors import CatalogError, UsageError
from filterdb.sources import Cache, Fetched, fetch_many, scan_folder

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = save({"stem.weight": np.zeros((4, 3, 3, 3), np.float32)})
PARAM = b"7767517\n2 2\nInput data 0 1 data\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "My Models"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "Big Net#1!.safetensors").write_bytes(WEIGHTS)
    (root / "big-net-1.safetensors").write_bytes(WEIGHTS)
    np.savez(root / "sub" / "w.npz", conv=np.zeros((4, 3, 3, 3), np.float32))
    (root / "sub" / "n.param").write_bytes(PARAM)
    (root / "sub" / "n.bin").write_bytes(bytes(16))
    (root / "lonely.param").write_bytes(PARAM)
    (root / "README.md").write_text("# Models\n")
    (root / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / ".hidden" / "x.safetensors").write_bytes(WEIGHTS)
    (root / "dangling").symlink_to("nowhere")
    return root


def test_every_file_is_an_entry_or_a_reason(folder: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    scan = scan_folder(folder, progress=lambda *event: told.append(event))
    found = {entry.id: entry for entry in scan.catalogue.entries}
    assert set(found) == {"big-net-1", "big-net-1-2", "sub-w", "sub-n"}
    assert {entry.format for entry in found.values()} == {"safetensors", "npz", "ncnn"}
    assert {item.path for item in scan.unread} == {
        "README.md",
        "dangling",
        "lonely.param",
        "photo.png",
    }
    reasons = {item.path: item.reason for item in scan.unread}
    assert "lonely.bin" in reasons["lonely.param"]
    assert "PNG" in reasons["photo.png"]
    network = found["sub-n"]
    assert network.companions == ("n.bin",)
    assert network.bytes == len(PARAM) + 16
    assert network.archive_sha256 == hashlib.sha256(PARAM).hexdigest()
    assert network.task == network.visual_category == "unknown"
    assert told[-1][1] == 9


def test_the_written_catalogue_loads_and_fetches(folder: Path, cache: Cache) -> None:
    scan = scan_folder(folder)
    path = folder / "models.toml"
    path.write_text(to_toml(scan.catalogue), encoding="utf-8")
    catalogue = load_catalogue(path)
    assert catalogue.name == "my-models"
    assert len(catalogue.entries) == 4
    for entry, outcome in fetch_many(catalogue.entries, cache):
        assert isinstance(outcome, Fetched), (entry, outcome)
        assert outcome.bytes == entry.bytes
    assert scan_folder(folder).catalogue.entries == scan.catalogue.entries


def test_the_catalogue_may_lie_elsewhere(folder: Path, tmp_path: Path, cache: Cache) -> None:
    home = tmp_path / "catalogues"
    home.mkdir()
    catalogue = scan_folder(folder, base=home, name="mine").catalogue
    (home / "mine.toml").write_text(to_toml(catalogue), encoding="utf-8")
    loaded = load_catalogue(home / "mine.toml")
    assert all(entry.uri.startswith("file:../My Models/") for entry in loaded.entries)
    assert all(isinstance(out, Fetched) for _, out in fetch_many(loaded.entries, cache))


def test_companions_outside_the_folder_are_refused(tmp_path: Path) -> None:
    manifest = [{"paths": ["../secret.bin"], "weights": []}]
    model = {"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    (tmp_path / "m.safetensors").write_bytes(WEIGHTS)
    scan = scan_folder(tmp_path)
    assert [item.path for item in scan.unread] == ["model.json"]
    assert "secret.bin" in scan.unread[0].reason


def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(WEIGHTS)
    with open(os.fsencode(tmp_path) + b"/\xff.safetensors", "wb") as file:  # noqa: PTH123 - bytes
        file.write(WEIGHTS)
    scan = scan_folder(tmp_path)
    assert len(scan.catalogue.entries) == 1
    assert "not UTF-8" in scan.unread[0].reason


def test_nothing_to_scan_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        scan_folder(tmp_path / "none")
    with pytest.raises(CatalogError, match="no model file: 0 files"):
        scan_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CatalogError, match="no model file: 1 files"):
        scan_folder(tmp_path)


def test_halves_that_name_each_other_are_one_model(tmp_path: Path) -> None:
    """A Darknet configuration and its weights; weights of the same training make a second."""
    cfg = "[net]\nwidth=8\nheight=8\nchannels=3\n[convolutional]\nfilters=2\nsize=1\n"
    weights = struct.pack("<3iq", 0, 2, 5, 1) + bytes(4 * (2 + 6))
    (tmp_path / "net.cfg").write_text(cfg)
    (tmp_path / "net.weights").write_bytes(weights)
    (only,) = scan_folder(tmp_path).catalogue.entries
    assert (only.uri, only.companions) == ("file:net.cfg", ("net.weights",))
    (tmp_path / "net_best.weights").write_bytes(weights)
    first, second = scan_folder(tmp_path).catalogue.entries
    assert (first.uri, second.uri) == ("file:net.cfg", "file:net_best.weights")
    assert second.companions == ("net.cfg",)
