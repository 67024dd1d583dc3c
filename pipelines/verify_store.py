"""``filterdb verify``: every file of a store against its manifest."""

from __future__ import annotations

from pathlib import Path

from pipelines.console import Console, format_bytes, plural


def run(store_path: Path, *, console: Console) -> int:
    """Check a store and name what is wrong with it.

    Parameters
    ----------
    store_path
        The store.
    console
        Where to talk.

    Returns
    -------
    int
        0 where every file is the one the manifest describes, 1 otherwise.
    """
    from filterdb.store import open_store
    from filterdb.store.verify import verify

    with console.progress() as progress:
        problems = verify(store_path, progress=progress)
    for problem in problems:
        print(problem)
    if problems:
        console.say(
            f"{plural(len(problems), 'problem')} in {store_path}; "
            "delete the store and extract again, or restore the files named from a copy"
        )
        return 1
    manifest = open_store(store_path).manifest.to_pylist()
    console.say(
        f"{store_path} is whole: {plural(len(manifest), 'file')}, "
        f"{format_bytes(sum(row['bytes'] for row in manifest))}"
    )
    return 0
