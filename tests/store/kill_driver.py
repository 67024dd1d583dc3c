"""Kill an extraction with SIGKILL at every step that touches the disk, then run it again.

Run by test_store_kill.py in a process of its own: ``kill_driver.py FOLDER FIRST STRIDE`` prints one
JSON line per point. Each extraction is a fork of this process, which has not started a thread, so
a kill costs no start of Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py  # noqa: F401 - imported once here, not in every fork
import pandas as pd  # noqa: F401
import pyarrow.parquet  # noqa: F401

from filterdb.store.collect import collect_tables
from filterdb.store.layout import LOCK_FILE
from filterdb.store.shards import assemble_shard
from filterdb.store.staging import StagedModel, read_stage, stage_model
from filterdb.store.verify import verify
from filterdb.store.writer import commit, create, locked, next_plan, pending
from filterdb.testing import (
    LAYER_SPECS,
    failed_model,
    make_entries,
    make_model,
)

if TYPE_CHECKING:
    from filterdb.catalog.model import Entry

ENTRIES = make_entries(5)
FAILING = ENTRIES[1].id
SHARD_BYTES = 1_500_000


def extract(store_path: Path, models: dict[str, StagedModel], entries: tuple[Entry, ...]) -> None:
    """The job as the pipeline does it: models staged before are not staged again."""
    with locked(store_path):
        create(store_path, shard_bytes=SHARD_BYTES)
        plan = next_plan(store_path, entries, retry=False)
        todo = pending(store_path, plan, [e.id for e in entries], retry=False)
        for model_id in todo:
            if read_stage(store_path, model_id, key=model_id) is None:
                stage_model(store_path, model_id, models[model_id])
        shards = []
        for number in range(len(plan.shards)):
            members = [m for m in plan.members(number) if m in todo]
            shards.append(assemble_shard(store_path, number, members) if members else None)
        tables = collect_tables(store_path, plan)
        commit(store_path, tables=tables, shards=[s for s in shards if s], plan=plan)


def die_at(step: int) -> None:
    """Make this process kill itself before the given call among those that change the disk."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def forked(function: Callable[[], None]) -> int:
    """Run in a child; return 0, or 9 where it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:  # noqa: BLE001 - a fork must never return into its parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def check(path: Path) -> None:
    problems = verify(path)
    if problems:
        raise AssertionError([str(p) for p in problems])


def digest(folder: Path) -> str:
    """Hash of every file of a store but the lock, which names a process."""
    lines = [
        f"{p.relative_to(folder)} {hashlib.sha256(p.read_bytes()).hexdigest()}"
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != LOCK_FILE
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main(folder: Path, first: int, stride: int) -> None:
    models = {e.id: make_model(e, specs=LAYER_SPECS[:5]) for e in ENTRIES}
    # Its download fails in the first run and succeeds in the second, in a shard of its own.
    offline = {**models, FAILING: failed_model(ENTRIES[1], retryable=True)}
    base, undisturbed = folder / "base", folder / "undisturbed"
    assert forked(lambda: extract(base, offline, ENTRIES[:2])) == 0
    shutil.copytree(base, undisturbed)
    assert forked(lambda: extract(undisturbed, models, ENTRIES)) == 0
    expected = digest(undisturbed)
    step, code = first, -signal.SIGKILL
    while code == -signal.SIGKILL:
        path = folder / f"killed-{step}"

        def killed(path: Path = path, step: int = step) -> None:
            die_at(step)
            extract(path, models, ENTRIES)

        shutil.copytree(base, path)
        code = forked(killed)
        whole = forked(lambda path=path: check(path))
        again = forked(lambda path=path: extract(path, models, ENTRIES))
        outcome = {"step": step, "killed": code == -signal.SIGKILL, "readable": whole == 0}
        outcome |= {"again": again, "equal": digest(path) == expected}
        sys.stdout.write(json.dumps(outcome) + "\n")
        shutil.rmtree(path)
        step += stride


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
