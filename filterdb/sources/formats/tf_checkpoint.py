"""TensorFlow checkpoints: ``.index`` with its ``.data-…`` files, as every version writes them.

There is no graph in them: names tell, as in a state dict. Checkpoints of TensorFlow 2 keep the way
to each variable and its own name beside it; the own name is used where it is unmistakable.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError
from filterdb.layers.names import natural_key
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.tf_bundle import Bundle, Variable, read_header, shard_name
from filterdb.sources.formats.tf_object_graph import VALUE_KEY, ObjectGraph
from filterdb.sources.formats.tf_slots import skip_reasons
from filterdb.sources.formats.tf_table import FOOTER, MAGIC
from filterdb.sources.formats.tf_types import item_size
from filterdb.sources.formats.tf_unnamed import unnamed_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.types import SkipReason

_INDEX = ".index"


def sniff(_head: bytes, file: ModelFile) -> bool:
    """Tell a checkpoint's index by the end of the file.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    bool
        True for a table of TensorFlow.
    """
    try:
        with file.path.open("rb") as handle:
            if handle.seek(0, 2) < FOOTER:
                return False
            handle.seek(-len(MAGIC), 2)
            return handle.read() == MAGIC
    except OSError:
        return False


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the data files of a checkpoint.

    Parameters
    ----------
    file
        The index.

    Returns
    -------
    tuple of str
        Beside it; none for a checkpoint of version 1.

    Raises
    ------
    MalformedFileError
        If the index is damaged or has another name.
    """
    where = file.name or file.path.name
    with map_file(file.path) as data:
        header = read_header(data, where=where)
    if not header.shards:
        return ()
    stem = _stem(where)
    return tuple(shard_name(stem, i, header.shards) for i in range(header.shards))


def read(file: ModelFile) -> RawModel:
    """List the variables of a checkpoint.

    Parameters
    ----------
    file
        The index; the data files are its companions.

    Returns
    -------
    RawModel
        Without a graph.

    Raises
    ------
    FetchError
        If a file cannot be opened.
    MalformedFileError
        If it is damaged.
    MissingCompanionError
        If a data file is not there.
    UnsafeCheckpointError
        If sizes are absurd.
    """
    where = file.name or file.path.name
    with map_file(file.path) as data:
        header = read_header(data, where=where)
        if not header.shards:
            from filterdb.sources.formats.tf_checkpoint_v1 import read_version_1

            variables = read_version_1(data, file.path, where=where)
            graph, note = None, "checkpoint of version 1"
        else:
            bundle = Bundle(data, _stem(where), file.companions, where=where)
            variables = list(bundle.variables())
            graph = bundle.object_graph()
            note = "checkpoint saved by object" if graph else "checkpoint saved by name"
    tensors = tuple(network_tensors(variables, graph).values())
    return RawModel(
        format="tf_checkpoint",
        tensors=tensors,
        nodes=unnamed_layers(tensors),
        default_layout="HWIO",
        notes=(note,),
    )


def network_tensors(variables: Sequence[Variable], graph: ObjectGraph | None) -> dict[str, Tensor]:
    """Turn variables into tensors under readable names.

    Parameters
    ----------
    variables
        Of a checkpoint.
    graph
        Its objects, where it was saved by object.

    Returns
    -------
    dict of str to Tensor
        By key, in the order of the index; where variables are numbered, in that of the numbers.
    """
    shapes = {v.key: v.shape for v in variables}
    reasons = skip_reasons(shapes)
    if graph is not None:
        for key in graph.slots & shapes.keys():
            reasons.setdefault(key, ("optimizer_state", ""))
        variables = sorted(variables, key=lambda v: natural_key(v.key))
    names = readable_names([v.key for v in variables], graph, reasons)
    return {
        v.key: Tensor(
            names[v.key],
            v.shape,
            v.dtype,
            v.load,
            storage=v.storage,
            skip=reasons.get(v.key) or _unreadable(v),
        )
        for v in variables
    }


def readable_names(
    keys: Sequence[str],
    graph: ObjectGraph | None,
    reasons: Mapping[str, tuple[SkipReason, str]],
) -> dict[str, str]:
    """Choose names for variables.

    Parameters
    ----------
    keys
        Keys of the variables.
    graph
        The checkpoint's objects, if any.
    reasons
        Which are left out.

    Returns
    -------
    dict of str to str
        Key → the variable's own name where no other has it, else its key.
    """
    if graph is None:
        return {key: key for key in keys}
    plain = {key: key.removesuffix(VALUE_KEY) for key in keys}
    own = {key: graph.full_names[key] for key in keys if key in graph.full_names}
    taken = Counter([*(own.get(k, "") for k in keys), *plain.values()])
    # "kernel" alone, as Keras 3 has it, tells less than the way there.
    names = {
        key: own[key]
        if key in own and taken[own[key]] == 1 and "/" in own[key] and key not in reasons
        else plain[key]
        for key in keys
    }
    again = Counter(names.values())
    return {key: name if again[name] == 1 else key for key, name in names.items()}


def _unreadable(variable: Variable) -> tuple[SkipReason, str] | None:
    if item_size(variable.dtype) is None or variable.dtype.startswith("complex"):
        return "unsupported_dtype", f"type {variable.dtype!r}"
    return None


def _stem(name: str) -> str:
    if not name.endswith(_INDEX):
        raise MalformedFileError(
            f"{name} is the index of a checkpoint: expected a name that ends in {_INDEX}",
            tip="its data files are found by that name",
        )
    return name[: -len(_INDEX)]


READER = FormatReader(
    "tf_checkpoint",
    "TensorFlow checkpoint",
    (_INDEX, ".ckpt"),
    sniff=sniff,
    read=read,
    companions=companions,
)
