from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds._proto import message
from tests.fuzz.seeds.tf_checkpoint import KERNEL, bundle, entry
from tests.fuzz.seeds.tf_graph import Field, constant, convolution, node, placeholder

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    frozen = [placeholder(), constant("w"), convolution("c", "x", "w")]
    kept = bundle([entry(b"v", KERNEL, [3, 3, 1, 1], 0)], KERNEL)
    beside = {
        name.replace("model.ckpt", "variables/variables"): data for name, data in kept.items()
    }
    meta = {"model.ckpt.meta": message(_meta(_graph())[1])} | kept
    return [
        {"saved_model.pb": message([(1, 1), _meta(frozen)])},
        {"saved_model.pb": message([(1, 1), _meta(_graph())])} | beside,
        meta,
    ]


def _graph() -> list[Field]:
    shape = [(7, [(2, [(1, n)]) for n in (3, 3, 1, 1)])]
    return [
        placeholder(),
        node("v", "VarHandleOp", dtype=[(6, 1)], shape=shape, shared_name=[(2, "v")]),
        node("read", "ReadVariableOp", "v"),
        convolution("c", "x", "read"),
        node("names", "Const", dtype=[(6, 7)], value=[(8, [(1, 7), (2, [(2, [(1, 1)])]),
                                                          (8, "v")])]),
        node("save", "SaveV2", "prefix", "names", "slices", "read"),
    ]  # fmt: skip


def _meta(graph: list[Field]) -> tuple[int, Any]:
    information = [(4, "serve"), (5, "2.16.1")]
    signature = [(1, "serving_default"), (2, [(2, [(1, "y"), (2, [(1, "c:0")])])])]
    return 2, [(1, information), (2, graph), (5, signature)]
