"""The process that fuzzes one reader: ``python -m tests.fuzz.target FORMAT FOLDER RUNS SEED``.

FOLDER keeps the corpus, what was found and the counts, so that the next process goes on from
there. A finding does not end the run: it is written down once for each cause. What ends the
process (a crash in compiled code) leaves the files it read in the folder ``input``.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import atheris

from tests.fuzz import packing
from tests.fuzz.replay import cause

MAX_BYTES = 16_384
_EVERY = 500
_WORD = re.compile(rb"[A-Za-z_][\w.:/]{2,30}")


class Target:
    """Runs inputs and keeps count."""

    def __init__(self, format_name: str, folder: Path, runs: int) -> None:
        from tests.fuzz import oracle

        self.oracle = oracle
        self.format_name = format_name
        self.folder = folder
        self.input = Path(os.environ.get("FUZZ_TMP", folder)) / f"input-{format_name}"
        self.runs = runs
        self.done = 0
        self.kinds: dict[str, int] = {}
        self.slowest = 0.0
        self.begun = time.monotonic()
        self.memory = oracle.Memory()
        self.default = "model"

    def once(self, data: bytes) -> None:
        """Read one input."""
        files = packing.unpack(bytes(data), self.default)
        start = time.process_time()
        try:
            kind = self.check(files)
        except self.oracle.Violation as violation:
            kind = self.note(files, str(violation))
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.slowest = max(self.slowest, time.process_time() - start)
        self.done += 1
        if self.done % _EVERY == 0 or self.done == self.runs:
            self.save()

    def check(self, files: packing.Files) -> str:
        if self.format_name == "containers":
            from tests.fuzz.archives import check_archive

            return check_archive(files, self.input, self.memory)
        return self.oracle.check(self.format_name, files, self.input, self.memory).kind

    def note(self, files: packing.Files, what: str) -> str:
        """Keep the smallest input of each cause."""
        name = hashlib.sha256(cause(what).encode()).hexdigest()[:10]
        target = self.folder / "crashes" / name
        packed = packing.pack(files)
        if not target.exists() or target.stat().st_size > len(packed):
            target.write_bytes(packed)
            target.with_suffix(".txt").write_text(what + "\n")
        return "Violation"

    def save(self) -> None:
        """Write the counts, whole or not at all."""
        record = {
            "runs": self.done,
            "seconds": round(time.monotonic() - self.begun, 2),
            "kinds": self.kinds,
            "peak_bytes": self.memory.worst,
            "slowest_seconds": round(self.slowest, 3),
        }
        temporary = self.folder / ".counts"
        temporary.write_text(json.dumps(record))
        temporary.replace(self.folder / "counts.json")


def main() -> None:
    format_name, folder, runs, seed = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:5])
    corpus = folder / "corpus"
    seeds = [path.read_bytes() for path in sorted((folder / "seeds").iterdir())]
    _dictionary(seeds, folder / "words")
    with _quietly(), atheris.instrument_imports(include=["filterdb"]):
        from filterdb.sources import formats
        from filterdb.sources.formats import FORMATS

        target = Target(format_name, folder, runs)
        target.default = next(iter(packing.unpack(seeds[0], "model")))
        list(FORMATS.values())  # a refused file is shown to all of them
        # What else a refused file looks like is told by reading it as every format: see
        # test_every_reader for that, here it would take half the time.
        formats.detect = lambda _file: format_name
        for data in seeds:  # imports what readers import when they run
            with contextlib.suppress(target.oracle.Violation):
                target.check(packing.unpack(data, target.default))
    gc.freeze()
    target.oracle.limit_address_space()

    def mutator(data: bytes, max_size: int, number: int) -> bytes:
        from tests.fuzz.mutation import mutate

        return mutate(
            bytes(data), limit=max_size, seed=number, native=atheris.Mutate,
            default=target.default, valid=seeds,
        )  # fmt: skip

    flags = [
        f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", f"-dict={folder / 'words'}",
        "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1", "-len_control=0",
        f"-artifact_prefix={folder}/native-",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(folder / "seeds")], target.once,
                  custom_mutator=mutator)  # fmt: skip
    target.begun = time.monotonic()
    atheris.Fuzz()


def _dictionary(seeds: list[bytes], path: Path) -> None:
    words: dict[bytes, int] = {}
    for data in seeds:
        for word in set(_WORD.findall(data)):
            words[word] = words.get(word, 0) + 1
    most = sorted(words, key=lambda word: -words[word])[:300]
    path.write_text("".join(f'"{word.decode()}"\n' for word in most))


@contextlib.contextmanager
def _quietly() -> Any:
    """Leave out the line per instrumented module."""
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):
        yield


if __name__ == "__main__":
    main()
