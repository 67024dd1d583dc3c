"""``filterdb compare``: what changed between two checkpoints, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.console import printable
from pipelines.inspect_checkpoint import read_model_layers
from pipelines.output import to_json

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.console import Console


def run(
    first: str, second: str, *, as_json: bool, cache_path: Path | None, console: Console
) -> int:
    """Compare two files or URIs.

    Parameters
    ----------
    first, second
        Paths or source URIs; changes are told from first to second.
    as_json
        Write the record instead of text.
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
    return 0
