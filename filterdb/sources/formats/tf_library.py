"""TensorFlow graphs as JSON, with the functions they call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.tf_graph_proto import Function, Graph, Library
from filterdb.sources.formats.tf_operations import clean, operation_from_json


def library_from_json(topology: Mapping[str, Any]) -> Library:
    """Read a GraphDef written as JSON.

    Parameters
    ----------
    topology
        With ``node`` and perhaps ``library``.

    Returns
    -------
    Library
        The graph and its functions; the values of constants lie elsewhere.

    Raises
    ------
    MalformedFileError
        If operations are none.
    """
    listed = topology["node"]
    library = topology.get("library")
    functions = library.get("function") if isinstance(library, Mapping) else None
    found = {}
    for body in functions if isinstance(functions, list) else []:
        if isinstance(body, Mapping):
            function = _function(body)
            found[function.name] = function
    return Library(_body(listed), found)


def _body(listed: object) -> Graph:
    if not isinstance(listed, list) or not all(isinstance(n, Mapping) for n in listed):
        raise MalformedFileError("modelTopology.node is no list of operations")
    return Graph([operation_from_json(node) for node in listed], {})


def _function(body: Mapping[str, Any]) -> Function:
    signature = body.get("signature")
    parts = signature if isinstance(signature, Mapping) else {}
    returned = body.get("ret")
    values = returned if isinstance(returned, Mapping) else {}
    names = _names(parts, "outputArg", "output_arg")
    return Function(
        clean(str(parts.get("name", "")))[:4096],
        _names(parts, "inputArg", "input_arg"),
        tuple(clean(str(values.get(name, "")))[:4096] for name in names),
        names,
        _body(body.get("nodeDef") or body.get("node_def") or []),
    )


def _names(parts: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    listed: list[Any] = next((parts[k] for k in keys if isinstance(parts.get(k), list)), [])
    return tuple(
        clean(str(a.get("name", "")))[:4096] if isinstance(a, Mapping) else "" for a in listed
    )
