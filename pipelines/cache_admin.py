"""``filterdb cache``: what the cache of fetched files holds, and emptying it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from filterdb.errors import UsageError
from pipelines.console import Console, format_bytes
from pipelines.output import to_json

#: What may lie in a cache's folder.
CACHE_NAMES = frozenset({"CACHEDIR.TAG", "objects", "index", "locks", "tmp", "pins", "guard"})


def run(action: str, *, cache_path: Path | None, as_json: bool, console: Console) -> int:
    """Show or empty the cache.

    Parameters
    ----------
    action
        info or clear.
    cache_path
        The cache; None for the default.
    as_json
        Write a record instead of a sentence.
    console
        Where to talk.

    Returns
    -------
    int
        0.
    """
    from filterdb.sources import Cache

    cache = Cache(cache_path)
    _refuse_foreign(cache.root)
    facts = cache.info() if action == "info" else cache.clear()
    if as_json:
        print(to_json({k: str(v) if isinstance(v, Path) else v for k, v in asdict(facts).items()}))
        return 0
    if action == "clear":
        console.say("removed:")
    for name, value in asdict(facts).items():
        shown = format_bytes(value) if "bytes" in name or (name == "limit" and value) else value
        print(f"{name.replace('_', ' ')}: {shown}")
    return 0


def _refuse_foreign(root: Path) -> None:
    """Make sure that emptying a cache never empties anything else."""
    found = "it is a file" if root.is_file() else ""
    if root.is_dir():
        foreign = sorted({p.name for p in root.iterdir()} - CACHE_NAMES)
        found = f"it holds {', '.join(foreign[:3])}" if foreign else ""
    if found:
        raise UsageError(
            f"{root} is no cache of filterdb: {found}",
            tip="give the folder itself, or set FILTERDB_CACHE to it",
        )
