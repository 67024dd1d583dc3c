"""How much of every architecture timm can build comes out right, without a single weight.

``python -m tests.layers.architectures --out reports/formats/architectures.csv`` builds each
architecture on torch's meta device (shapes, no values), one at a time, and compares what filterdb
finds with the live modules: kernel, groups, channels and operation of every convolution. Three
files are imagined for each: a random twin (``init:timm/…``, which lists its modules), a state dict
in the order of registration, and one sorted by the alphabet, as safetensors' own writer leaves it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb.layers.detect import find_layers
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.torch_modules import module_node
from filterdb.sources.origins.random_init import list_modules

if TYPE_CHECKING:
    import numpy as np

#: (operation, groups, output channels, input channels, kernel) of one convolution.
Shape = tuple[str, int, int, int, tuple[int, ...]]
#: What is imagined to lie on the disk.
FILES = ("twin", "registered", "sorted")


@dataclass(frozen=True)
class Row:
    """One architecture and one imagined file of it."""

    architecture: str
    family: str
    file: str
    parameters: int
    convolutions: int
    found: int
    right: int
    wrong_groups: int
    wrong_otherwise: int
    missing: int
    extra: int
    examples: str


def truth_of(model: Any) -> dict[str, Shape]:
    """List the live convolutions by the names of their weights, subclasses included."""
    import torch

    return {
        f"{name}.weight": (
            "conv_transpose" if m.transposed else "conv",
            m.groups,
            m.out_channels,
            m.in_channels,
            tuple(m.kernel_size),
        )
        for name, m in model.named_modules(remove_duplicate=False)
        if isinstance(m, torch.nn.modules.conv._ConvNd)
    }


def raw_of(model: Any, file: str) -> RawModel:
    """Return what a reader would hand over of one of :data:`FILES`; values cannot be loaded."""
    state = model.state_dict()
    names = sorted(state) if file == "sorted" else list(state)
    shapes = {n: tuple(state[n].shape) for n in names}
    tensors = tuple(
        Tensor(n, shapes[n], str(state[n].dtype).removeprefix("torch."), _nothing) for n in names
    )
    nodes = ()
    if file == "twin":
        roles = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
        roles |= {"weight": "weight", "bias": "bias"}
        nodes = tuple(
            module_node(
                m["name"],
                m["type"],
                m,
                {leaf: (m[role], shapes[m[role]]) for role, leaf in roles.items() if role in m},
            )
            for m in list_modules(model)
        )
    return RawModel("torch", tensors, nodes, default_layout="OIHW")


def _nothing() -> np.ndarray:
    raise RuntimeError("a tensor of the meta device has no values")


def compare(architecture: str, family: str, model: Any) -> Iterator[Row]:
    """Compare what is found in each imagined file with the live modules."""
    truth = truth_of(model)
    parameters = sum(p.numel() for p in model.parameters())
    for file in FILES:
        layers = find_layers(raw_of(model, file)).layers
        found = {
            r.tensor: (r.op, r.groups, r.out_channels, r.in_channels, r.kernel) for r in layers
        }
        common = truth.keys() & found.keys()
        right = {n for n in common if truth[n] == found[n]}
        groups = {
            n for n in common - right if truth[n][0] == found[n][0] and truth[n][1] != found[n][1]
        }
        bad = sorted((truth.keys() ^ found.keys()) | (common - right))
        examples = Counter(
            f"{_pattern(n)} {_short(truth.get(n))} as {_short(found.get(n))}" for n in bad
        )
        yield Row(
            architecture,
            family,
            file,
            parameters,
            len(truth),
            len(layers),
            len(right),
            len(groups),
            len(common) - len(right) - len(groups),
            len(truth.keys() - found.keys()),
            len(layers) - len(common),
            "; ".join(f"{n}x {what}" for what, n in examples.most_common(3)),
        )


def _pattern(name: str) -> str:
    return ".".join("#" if p.isdigit() else p for p in name.split("."))


def _short(shape: Shape | None) -> str:
    if shape is None:
        return "nothing"
    op, groups, out, into, kernel = shape
    text = f"{into}>{out} {'x'.join(map(str, kernel))} in {groups}"
    return text if op == "conv" else f"{text} transposed"


def rows_of(names: Sequence[str]) -> Iterator[Row]:
    """Build and compare architectures one at a time."""
    import timm
    import torch

    for name in names:
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        yield from compare(name, family, model)


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Sum rows by family and file."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        table = tables.setdefault(
            (row.family, row.file),
            {"family": row.family, "file": row.file, "architectures": 0, "all_right": 0},
        )
        table["architectures"] += 1
        table["all_right"] += row.right == row.convolutions == row.found
        for what in COUNTS:
            table[what] = table.get(what, 0) + getattr(row, what)
        if row.examples and not table.get("example"):
            table["example"] = f"{row.architecture}: {row.examples}"
    return list(tables.values())


COUNTS = (
    "convolutions",
    "found",
    "right",
    "wrong_groups",
    "wrong_otherwise",
    "missing",
    "extra",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all that timm has")
    parser.add_argument("--out", type=Path, help="CSV by family and file")
    parser.add_argument("--each", type=Path, help="CSV of every architecture and file")
    options = parser.parse_args(arguments)
    import timm

    rows: list[Row] = []
    with (options.each or Path("/dev/null")).open("w", newline="") as stream:
        each = csv.DictWriter(stream, [f.name for f in fields(Row)], lineterminator="\n")
        each.writeheader()
        for row in rows_of(options.names or timm.list_models()):
            each.writerow(asdict(row))
            stream.flush()
            rows.append(row)
    tables = summarise(rows)
    if options.out:
        with options.out.open("w", newline="") as stream:
            names = ["family", "file", "architectures", "all_right", *COUNTS, "example"]
            table = csv.DictWriter(stream, names, lineterminator="\n")
            table.writeheader()
            table.writerows(tables)
    for file in FILES:
        these = [t for t in tables if t["file"] == file]
        total = {
            what: sum(t[what] for t in these) for what in ("architectures", "all_right", *COUNTS)
        }
        sys.stdout.write(f"{file}: {total}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
