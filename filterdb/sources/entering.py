"""The rule by which ``!/`` enters a file: what kind of container it is, and where its table lies.

1. By its bytes: zip, tar (plain or compressed), any other file behind gzip, bzip2 or xz (its one
   member is called as the file without ``.gz``).
2. JSON that lists files in chunks: the chunks lie beside it.
3. ``X.data``: its table lies in the loader beside it, ``X_loader.js`` or ``X.js``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from filterdb.errors import MissingCompanionError, SourceError
from filterdb.sources.container_kinds import container_kind
from filterdb.sources.containers import extract_member, list_members
from filterdb.sources.pieces import (
    chunk_table,
    copy_pieces,
    is_chunk_list,
    loader_names,
    package_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from filterdb.catalog.uri import SourceUri
    from filterdb.sources.containers import Write
    from filterdb.sources.stored import Stored

    #: Brings the file of a name that lies beside a container.
    Bring: TypeAlias = Callable[[SourceUri, str], Stored]


#: Suffixes worth naming when a URI forgot the member.
_MODEL_SUFFIXES = (
    *(".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".tflite", ".h5", ".hdf5", ".keras"),
    *(".npz", ".param", ".json", ".zip", ".bin", ".pkl"),
    *(".task", ".pb", ".caffemodel", ".pdmodel", ".xml", ".mlmodel", ".ort", ".t7", ".weights"),
    *(".tza", ".model", ".index", ".data", ".lite"),
)


def take_out(uri: SourceUri, path: Path, write: Write, *, bring: Bring) -> None:
    """Take a URI's last member out of the container it lies in.

    Parameters
    ----------
    uri
        With one member at least.
    path
        The container.
    write
        Called with the member's bytes, block by block.
    bring
        Brings files beside the container, where its table or its pieces lie.

    Raises
    ------
    MissingCompanionError
        Where the table or a piece is not beside the container.
    SourceError
        Where the container or the member cannot be read, as for
        :func:`~filterdb.sources.containers.extract_member`.
    """
    container = replace(uri, members=uri.members[:-1])
    what, name, label = str(container), uri.members[-1], container.file_name
    if container_kind(path) is None and is_chunk_list(path):
        table = chunk_table(path, what=what)
        copy_pieces(table, name, write, locate=lambda part: bring(container, part).path, what=what)
    elif container_kind(path) is None and loader_names(label):
        loader = _loader(container, bring)
        table = package_table(loader.path, path.stat().st_size, what=what)
        copy_pieces(table, name, write, locate=lambda _own: path, what=what)
    else:
        extract_member(path, name, write, what=what, label=label)


def _loader(container: SourceUri, bring: Bring) -> Stored:
    """Bring the script that says what lies where in a packaged file."""
    names = loader_names(container.file_name)
    tip = None
    for name in names:
        try:
            return bring(container, name)
        except MissingCompanionError as error:
            tip = tip or error.tip
    raise MissingCompanionError(
        f"{container} is entered by the table in its loader, which is not beside it: looked for "
        f"{', '.join(names)}",
        tip=tip,
    )


def members_tip(path: Path, what: str, label: str) -> str | None:
    """Say what may be entered in a file that is no model.

    Parameters
    ----------
    path
        The file.
    what
        Its URI.
    label
        Its own file name.

    Returns
    -------
    str or None
        None where it is no container.
    """
    if container_kind(path) is not None:
        return f"name a file in it: {largest_members(path, what, label)}"
    if is_chunk_list(path):
        try:
            names = ", ".join(f"!/{name}" for name in list(chunk_table(path, what=what))[:8])
        except SourceError:
            return None
        return f"it lists files in chunks, name one: {names}"
    if loader_names(label):
        return f"packaged files are named in {loader_names(label)[0]}: add one with !/"
    return None


def largest_members(path: Path, what: str, label: str = "") -> str:
    """Name what may be models in a container.

    Parameters
    ----------
    path
        The container.
    what
        Its URI.
    label
        Its own file name.

    Returns
    -------
    str
        The largest, with their sizes as far as they are known.
    """
    members = list_members(path, what=what, label=label)
    models = [m for m in members if PurePosixPath(m.name).suffix.lower() in _MODEL_SUFFIXES]
    largest = sorted(models or members, key=lambda m: (-m.bytes, m.name))[:8]
    named = (f"!/{m.name}" + (f" ({m.bytes:,} bytes)" if m.bytes else "") for m in largest)
    return ", ".join(named) or "it is empty"
