"""A reader of filterdb stores written from FORMAT.md alone. It imports nothing of filterdb."""

import hashlib
import json
import sys
from pathlib import Path

import h5py
import pyarrow.parquet as pq


def read(folder):
    folder = Path(folder)
    settings = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    assert settings["format"] == "filterdb-store"
    assert settings["version"] == 1
    manifest = pq.read_table(folder / "manifest.parquet")
    check_seal(folder, manifest)
    rows = manifest.to_pylist()
    for row in rows:
        content = (folder / row["path"]).read_bytes()
        assert len(content) == row["bytes"]
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
    tables = {
        Path(row["path"]).stem: pq.read_table(folder / row["path"])
        for row in rows
        if row["kind"] == "table" and not row["path"].endswith("plan.json")
    }
    [plan_path] = [row["path"] for row in rows if row["path"].endswith("plan.json")]
    plan = json.loads((folder / plan_path).read_text(encoding="utf-8"))
    return tables, plan


def check_seal(folder, manifest):
    meta = {k.decode(): v.decode() for k, v in manifest.schema.metadata.items()}
    assert (meta["format"], meta["version"]) == ("filterdb-store", "1")
    settings = hashlib.sha256((folder / "store.json").read_bytes()).hexdigest()
    assert settings == meta["settings_sha256"]
    rows = sorted(manifest.to_pylist(), key=lambda row: row["path"])
    sealed = [
        int(meta["generation"]),
        int(meta["extractions"]),
        meta["plan_sha256"],
        meta["settings_sha256"],
        rows,
    ]
    text = json.dumps(sealed, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == meta["seal"]


def weights(folder, layer):
    """Return a layer's weight, or None where 1x1 kernels are not stored."""
    if layer["shard"] is None:
        assert all(k == "1" for k in layer["kernel"].split("x"))
        return None
    with h5py.File(Path(folder) / "filters" / f"{layer['shard']:05d}.h5", "r") as file:
        assert file.attrs["format"] == b"filterdb-shard"
        assert file.attrs["shard"] == layer["shard"]
        rows = file[layer["dataset"]][layer["start"] : layer["stop"]]
    kernel = [int(k) for k in layer["kernel"].split("x")]
    assert layer["dataset"] == f"{len(kernel)}d/{layer['kernel']}/{layer['stored_dtype']}"
    shape = (layer["out_channels"], layer["in_channels"] // layer["groups"], *kernel)
    weight = rows.reshape(shape)
    header = f"{weight.dtype.name} {','.join(str(s) for s in shape)}\n".encode()
    assert hashlib.sha256(header + weight.tobytes()).hexdigest() == layer["tensor_sha256"]
    return weight


if __name__ == "__main__":
    store = sys.argv[1]
    tables, plan = read(store)
    layers = tables["layers"].to_pylist()
    order = {}
    for number, models in enumerate(plan["shards"]):
        for model in models:
            order[model] = number
    models_in_order = [m for n, ms in enumerate(plan["shards"]) for m in ms if order[m] == n]
    present = set(tables["models"].column("model_id").to_pylist())
    assert [m for m in models_in_order if m in present] == tables["models"].column(
        "model_id"
    ).to_pylist()
    result = {}
    for layer in layers:
        weight = weights(store, layer)
        assert layer["shard"] in (None, order[layer["model_id"]])
        if weight is not None:
            result[layer["layer_uid"]] = hashlib.sha256(weight.tobytes()).hexdigest()
    assert not any(name.startswith("filterdb") for name in sys.modules)
    sys.stdout.write(json.dumps(result))
