"""``filterdb inspect``: check one checkpoint, with or without a population to compare it with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import UnknownNameError
from pipelines.console import printable
from pipelines.output import to_json

if TYPE_CHECKING:
    from filterdb.analysis.inspect import SourceInfo
    from filterdb.layers.model import ModelLayers
    from pipelines.console import Console

FAIL_ON = 4


def run(
    source: str,
    *,
    against: Path | None,
    layer: str | None,
    as_json: bool,
    fail_on: str | None,
    cache_path: Path | None,
    console: Console,
) -> int:
    """Inspect a file or URI.

    Parameters
    ----------
    source
        Path or source URI.
    against
        Store whose layers are the population; None compares with nothing.
    layer
        Only the layer of this name.
    as_json
        Write the record of schema.md.
    fail_on
        Findings, comma separated, that make the exit code 4.
    cache_path
        Cache of fetched files; None for the default.
    console
        Where to talk.

    Returns
    -------
    int
        0, or 4 where a layer has one of `fail_on`.
    """
    from filterdb.analysis.inspect import inspect_layers
    from filterdb.analysis.oddities import INSPECT_KINDS
    from filterdb.analysis.reference import reference_of
    from filterdb.store import open_store

    fatal = _known(fail_on, INSPECT_KINDS)
    population = None if against is None else reference_of(open_store(against))
    info, found = read_model_layers(source, cache_path=cache_path)
    report = inspect_layers(found, info, population=population)
    if layer is not None:
        names = [r.layer.name for r in report.layers]
        if layer not in names:
            raise UnknownNameError("layer", layer, names, where=source)
        report = replace(report, layers=tuple(r for r in report.layers if r.layer.name == layer))
    if as_json:
        print(to_json(report.to_json()))
    else:
        print(printable("\n".join(report.text())))
        if population is None:
            console.say("compared with no population; --against STORE gives percentiles")
    hits = sorted(set(report.findings) & fatal)
    if hits:
        console.say(f"--fail-on found {', '.join(f'{h} ({report.findings[h]})' for h in hits)}")
        return FAIL_ON
    return 0


def _known(words: str | None, kinds: object) -> set[str]:
    known = sorted(kinds)  # type: ignore[call-overload]
    chosen = {w.strip() for w in (words or "").split(",") if w.strip()}
    for word in sorted(chosen - set(known)):
        raise UnknownNameError("finding", word, known)
    return chosen


def read_model_layers(source: str, *, cache_path: Path | None) -> tuple[SourceInfo, ModelLayers]:
    """Fetch and open a model, and find its layers.

    Parameters
    ----------
    source
        Path or source URI.
    cache_path
        Cache of fetched files; None for the default.

    Returns
    -------
    tuple
        Which file it was, and what it holds.
    """
    from filterdb.analysis.inspect import SourceInfo
    from filterdb.layers.detect import find_layers
    from filterdb.sources import Cache, fetch, open_raw

    fetched = fetch(source, cache=Cache(cache_path))
    raw = open_raw(fetched)
    info = SourceInfo(fetched.uri, raw.format, fetched.member_sha256, fetched.bytes)
    return info, find_layers(raw)
