"""Tensors and modules of a pickled checkpoint, handed over as a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.torch_groups import mark_flat_copies
from filterdb.sources.formats.torch_parts import Found, Part, join

if TYPE_CHECKING:
    from filterdb.sources.formats.pickle_reader import Unpickled

_LISTED_CLASSES = 5


def notes_of(pickle: Unpickled, container: str) -> tuple[str, ...]:
    """Say which container it is, and which classes a pickle names that are left as placeholders."""
    own = ("torch", "collections", "builtins", "__builtin__", "numpy", "_codecs", "copyreg")
    foreign = [g.path for g in pickle.globals if g.module.partition(".")[0] not in own]
    if not foreign:
        return (f"torch {container}",)
    more = ", …" if len(foreign) > _LISTED_CLASSES else ""
    listed = ", ".join(path[:80] for path in foreign[:_LISTED_CLASSES])
    return (f"torch {container}", f"classes left as placeholders: {listed}{more}")


def raw_model(
    part: Part,
    notes: tuple[str, ...],
    *,
    format: str = "torch",  # noqa: A002  the public word
    layout: str | None = "OIHW",
    has_edges: bool = False,
) -> RawModel:
    """Hand over what a file holds.

    Parameters
    ----------
    part
        Its tensors and modules.
    notes
        What the reader wants said.
    format
        The reader's name.
    layout
        Of kernels no node describes; None where only their shapes can tell.
    has_edges
        Whether the nodes are a graph.

    Returns
    -------
    RawModel
        With unique names, EMA copies sorted out.
    """
    part = part if has_edges else mark_flat_copies(part)
    names: dict[str, int] = {}
    tensors: list[Tensor] = []
    for found in part.tensors:
        name = found.name or "tensor"
        again = names.get(name, 0)
        names[name] = again + 1
        if again:
            name = join(name, f"again{again}")
            names[name] = 1
        tensors.append(_tensor(name, found))
    return RawModel(
        format=format,
        tensors=tuple(tensors),
        nodes=tuple(part.nodes),
        has_edges=has_edges,
        default_layout=layout,
        notes=notes,
    )


def _tensor(name: str, found: Found) -> Tensor:
    spec = found.spec
    return Tensor(
        name=name,
        shape=spec.shape,
        dtype=spec.dtype,
        load=spec.load,
        quantised=spec.quantised,
        storage=spec.storage,
        skip=found.skip,
    )
