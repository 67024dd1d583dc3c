"""``filterdb compare``: what changed between two checkpoints, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.errors import AnalysisError
from filterdb.files import write_bytes_durably
from pipelines.console import printable
from pipelines.inspect_checkpoint import read_model_layers
from pipelines.output import to_json

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.analysis.compare import Comparison, LayerComparison
    from filterdb.analysis.inspect import SourceInfo
    from filterdb.report.side_by_side import Pair
    from pipelines.console import Console


#: Layers drawn, spread over the depth.
N_LAYERS_DRAWN = 6
_RELATIONS = {
    "equal": "equal weight by weight",
    "folded": "equal once BatchNorm is folded in",
    "transposed": "rows and columns exchanged",
    "rotated_180": "turned by 180 degrees",
    "input_channels_reversed": "input channels in reverse order",
    "not_comparable": "not comparable",
}


def run(
    first: str,
    second: str,
    *,
    as_json: bool,
    picture: Path | None,
    cache_path: Path | None,
    console: Console,
) -> int:
    """Compare two files or URIs.

    Parameters
    ----------
    first, second
        Paths or source URIs; changes are told from first to second.
    as_json
        Write the record instead of text.
    picture
        SVG file to draw filters of matched layers in, side by side; None for none.
    cache_path
        Cache of fetched files; None for the default.
    console
        Where to talk.

    Returns
    -------
    int
        0, whatever the difference.
    """
    from filterdb.analysis.compare import compare_models

    first_info, first_layers = read_model_layers(first, cache_path=cache_path)
    second_info, second_layers = read_model_layers(second, cache_path=cache_path)
    report = compare_models(first_layers, second_layers, sources=(first_info, second_info))
    if as_json:
        print(to_json(report.to_json()))
    else:
        print(printable("\n".join(report.text())))
        console.say("deltas are relative to the first checkpoint")
    if picture is not None:
        write_bytes_durably(picture, _drawn(report).encode())
        console.say(f"drawn: {picture}")
    return 0


def _drawn(report: Comparison) -> str:
    """Draw up to N_LAYERS_DRAWN matched layers that have a shape, as SVG."""
    from filterdb.report.side_by_side import side_by_side

    shaped = [c for c in report.layers if c.first.n_coefficients > 1]
    if not shaped:
        raise AnalysisError(
            "there is nothing to draw: no matched layer has a kernel larger than 1×1"
        )
    step = max(1, -(-len(shaped) // N_LAYERS_DRAWN))
    titles = tuple(_title(source) for source in (report.first, report.second))
    return side_by_side((titles[0], titles[1]), [_pair(c) for c in shaped[::step]])


def _title(source: SourceInfo) -> str:
    archive, _, member = source.uri.partition("!/")
    name = (member or archive).rsplit("/", 1)[-1]
    package = archive.partition(":")[2].partition("?")[0] if member else ""
    return f"{source.format}: {name}" + (f" ({package.rsplit('/', 1)[-1]})" if package else "")


def _pair(comparison: LayerComparison) -> Pair:
    import numpy as np

    from filterdb.report.side_by_side import N_DRAWN, Pair

    sides = (comparison.first, comparison.second)
    shape = (-1, *comparison.first.kernel)
    # The first filters of as many output channels as there are; all of one input are alike.
    weights = [layer.weights().astype(np.float64) for layer in sides]
    n_out, n_in = weights[0].shape[:2]
    per_output = max(1, min(n_in, -(-N_DRAWN // n_out)))
    drawn = [w[:N_DRAWN, :per_output].reshape(shape)[:N_DRAWN] for w in weights]
    limit = float(max(np.abs(np.nan_to_num(d)).max(initial=0.0) for d in drawn))
    relation = comparison.delta.relation
    verdict = _RELATIONS.get(relation, relation)
    if comparison.delta.largest:
        verdict += f", largest difference {comparison.delta.largest:.2g}"
    return Pair((sides[0].name, sides[1].name), (drawn[0], drawn[1]), limit, verdict)
