"""Plain pickles of arrays: read, and never unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.errors import SourceError, UnsafeCheckpointError, UnsupportedFormatError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import ModelFile, detect, read_model

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel

KERNEL = np.arange(2 * 3 * 3 * 5, dtype=np.float32).reshape(2, 3, 3, 5)
ARRAYS = {
    "stem.weight": KERNEL,
    "stem.bias": np.ones(2, np.float32),
    "fortran.weight": np.asfortranarray(KERNEL),
    "half.weight": KERNEL.astype(np.float16),
    "big.weight": KERNEL.astype(">f8"),
    "steps": np.array(7),
}


def write(path: Path, value: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def read(path: Path) -> RawModel:
    file = ModelFile(path)
    assert detect(file) == "pickle"
    return read_model(file)


def assert_holds(model: RawModel, arrays: dict[str, np.ndarray]) -> None:
    assert [t.name for t in model.tensors] == list(arrays)
    for tensor in model.tensors:
        expected = arrays[tensor.name]
        loaded = tensor.load()
        assert loaded.shape == tensor.shape == expected.shape
        assert loaded.dtype.isnative
        np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize("protocol", range(6))
def test_dictionaries_of_arrays_and_orientation(tmp_path: Path, protocol: int) -> None:
    model = read(write(tmp_path / "weights.pkl", ARRAYS, protocol))
    assert_holds(model, ARRAYS)
    layers = {layer.name: layer for layer in find_layers(model).layers}
    assert layers["stem"].kernel == (3, 5)
    np.testing.assert_array_equal(layers["stem"].weights(), KERNEL)


def test_a_model_zoo_wraps_its_arrays(tmp_path: Path) -> None:
    content = {"model": ARRAYS, "__author__": "someone", "matching_heuristics": True}
    assert_holds(read(write(tmp_path / "R-50.pkl", content, 2)), ARRAYS)


class _Pair:
    """Pickles as Paddle's parameters do: ``tuple((name, array))``."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.content = (name, array)

    def __reduce__(self) -> Any:
        return tuple, (self.content,)


@pytest.mark.parametrize("pairs", [False, True])
def test_paddle_parameters(tmp_path: Path, pairs: bool) -> None:
    arrays = {"conv1.weight": KERNEL, "conv1.bias": np.zeros(2, np.float32)}
    content: dict[str, Any] = {
        name: _Pair(f"conv2d_0.{i}", array) if pairs else array
        for i, (name, array) in enumerate(arrays.items())
    }
    if not pairs:
        content["StructuredToParameterName@@"] = {"conv1.weight": "conv2d_0.w_0"}
    model = read(write(tmp_path / "model.pdparams", content, 4))
    assert_holds(model, arrays)


def test_arrays_of_objects(tmp_path: Path) -> None:
    nested = np.array({"conv": {"weights": KERNEL, "biases": np.zeros(2)}}, dtype=object)
    np.save(tmp_path / "vgg.npy", nested, allow_pickle=True)
    model = read(tmp_path / "vgg.npy")
    assert_holds(model, {"conv.weights": KERNEL, "conv.biases": np.zeros(2)})
    np.savez(tmp_path / "mixed.npz", weights=KERNEL, names=np.array(["a", 1], dtype=object))
    mixed = read_model(ModelFile(tmp_path / "mixed.npz"))
    assert {t.name: bool(t.skip) for t in mixed.tensors} == {"weights": False, "names": True}


def test_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "kernel.npy", KERNEL)
    assert_holds(read(tmp_path / "kernel.npy"), {"kernel": KERNEL})


class _Harmful:
    def __reduce__(self) -> Any:
        return eval, ("__import__('os').abort()",)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="eval"):
        read(write(tmp_path / "harmful.pkl", {"a.weight": KERNEL, "b": _Harmful()}, 4))
    with pytest.raises(UnsupportedFormatError, match=r"without arrays.*PosixPath"):
        read(write(tmp_path / "paths.pkl", [Path("a")], 4))
    (tmp_path / "text.pkl").write_text("no pickle\n")
    with pytest.raises(UnsupportedFormatError, match="no reader knows"):
        read(tmp_path / "text.pkl")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_pickles_give_values_or_source_errors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(pickle.dumps(ARRAYS, data.draw(st.integers(2, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(2, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("mutated") / "weights.pkl"
    path.write_bytes(raw[: data.draw(st.integers(2, len(raw)))])
    try:
        for tensor in read_model(ModelFile(path), "pickle").tensors:
            if tensor.skip is None:
                tensor.load()
    except SourceError:
        pass
