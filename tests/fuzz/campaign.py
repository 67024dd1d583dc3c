"""``make fuzz``: every reader, as many runs as asked for, resumable.

``python -m tests.fuzz.campaign --runs 100000 [--format onnx …] [--out build/fuzz]`` starts one
process after the other, 20,000 runs each, and goes on where it was stopped. The table
``fuzz.csv`` in the folder is rewritten after each process.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filterdb.sources.formats import FORMATS
from tests.fuzz import packing

CHUNK = 20_000
#: Readers and what is not a reader but reads strangers' files too.
TARGETS = (*FORMATS, "containers")
_STATE = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass
class State:
    """What is known of one reader's runs so far."""

    reader: str
    runs: int = 0
    seconds: float = 0.0
    edges: int = 0
    features: int = 0
    corpus: int = 0
    crashes: int = 0
    peak_bytes: int = 0
    slowest_seconds: float = 0.0
    processes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        kinds = self.kinds
        refused = sum(n for kind, n in kinds.items() if kind.endswith("Error"))
        return {
            "reader": self.reader, "runs": self.runs, "seconds": round(self.seconds),
            "runs_per_second": round(self.runs / max(self.seconds, 1e-9)),
            "coverage_edges": self.edges, "coverage_features": self.features,
            "corpus_files": self.corpus, "read": kinds.get("read", 0), "refused": refused,
            "crashes": self.crashes, "peak_mb": round(self.peak_bytes / 1e6, 1),
            "slowest_seconds": self.slowest_seconds,
        }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--format", action="append", choices=TARGETS)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--seeds", type=Path, help="more seeds: one folder a reader")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.format or TARGETS:
        fuzz(name, options.out.resolve() / name, options.runs, more=options.seeds)
        _table(options.out)
    return 1 if any(state.crashes for state in _states(options.out)) else 0


def fuzz(name: str, folder: Path, runs: int, *, more: Path | None = None) -> None:
    """Run one reader until it has `runs` runs."""
    state = _load(name, folder)
    if state.runs >= runs:
        print(f"{name}: {state.runs:,} runs are done already", flush=True)  # noqa: T201
        return
    _prepare(name, folder, more)
    failures = 0
    while state.runs < runs and failures < 20:
        before = state.runs
        _process(state, folder, min(CHUNK, runs - state.runs))
        failures = failures + 1 if state.runs == before else 0
        (folder / "state.json").write_text(json.dumps(asdict(state)))
        _table(folder.parent)
        row = state.row()
        print(  # noqa: T201
            f"{name}: {state.runs:,} of {runs:,} runs, {row['runs_per_second']} a second, "
            f"{state.edges:,} edges, {state.corpus:,} inputs kept, {state.crashes} crashes, "
            f"peak {row['peak_mb']} MB",
            flush=True,
        )


def _prepare(name: str, folder: Path, more: Path | None) -> None:
    for part in ("corpus", "seeds", "crashes"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    # In another process: the frameworks that write seeds take memory, which children inherit.
    command = [sys.executable, "-m", "tests.fuzz.seeds", name, str(folder / "seeds")]
    subprocess.run(command, check=True)
    if more is not None and (more / name).is_dir():
        for path in (more / name).iterdir():
            shutil.copyfile(path, folder / "seeds" / path.name)


def _process(state: State, folder: Path, runs: int) -> None:
    """Start one process and add up what it did, however it ended."""
    counts = folder / "counts.json"
    counts.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.target", state.reader, str(folder), str(runs)]
    state.processes += 1
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as tmp:
        environment = {**os.environ, "FUZZ_TMP": tmp, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("wb") as log:
            done = subprocess.run(
                [*command, str(state.processes)], stdout=log, stderr=log, env=environment,
                timeout=3600 + runs, check=False,
            )  # fmt: skip
        text = (folder / "log.txt").read_text(errors="replace")
        if done.returncode != 0:
            _keep_crash(state.reader, folder, Path(tmp), done.returncode, text)
    if counts.exists():
        _add(state, json.loads(counts.read_text()))
    for edges, features, corpus in _STATE.findall(text)[-1:]:
        state.edges, state.features = (
            max(state.edges, int(edges)),
            max(state.features, int(features)),
        )
        state.corpus = int(corpus)
    state.crashes = len(list((folder / "crashes").glob("*.txt")))


def _keep_crash(name: str, folder: Path, tmp: Path, code: int, log: str) -> None:
    left = tmp / f"input-{name}"
    paths = [path for path in left.rglob("*") if path.is_file()] if left.is_dir() else []
    files = {str(path.relative_to(left)): path.read_bytes() for path in paths}
    files = dict(sorted(files.items(), key=lambda item: not item[0].startswith("model")))
    data = packing.pack(files)
    target = folder / "crashes" / f"process-{hashlib.sha256(data).hexdigest()[:10]}"
    target.write_bytes(data)
    target.with_suffix(".txt").write_text(f"the process ended with {code}\n{log[-3000:]}")


def _add(state: State, record: dict[str, Any]) -> None:
    state.runs += record["runs"]
    state.seconds += record["seconds"]
    state.peak_bytes = max(state.peak_bytes, record["peak_bytes"])
    state.slowest_seconds = max(state.slowest_seconds, record["slowest_seconds"])
    for kind, count in record["kinds"].items():
        state.kinds[kind] = state.kinds.get(kind, 0) + count


def _load(name: str, folder: Path) -> State:
    path = folder / "state.json"
    state = State(**json.loads(path.read_text())) if path.exists() else State(name)
    # Those that were mended have been deleted.
    state.crashes = len(list((folder / "crashes").glob("*.txt")))
    return state


def _states(out: Path) -> list[State]:
    return [_load(name, out / name) for name in TARGETS if (out / name / "state.json").exists()]


def _table(out: Path) -> None:
    rows = [state.row() for state in _states(out)]
    if not rows:
        return
    temporary = out / ".fuzz.csv"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(out / "fuzz.csv")


if __name__ == "__main__":
    raise SystemExit(main())
