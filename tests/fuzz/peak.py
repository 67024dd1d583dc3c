"""How much memory reading takes, each file in a process of its own.

``python -m tests.fuzz.peak`` reads JSON lines ``[format, folder, [names]]`` and answers each with
how it ended, the bytes taken above what the imports took, and the seconds. Listing the layers and
loading tensors, one at a time, counts in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.packing import Files, write

_LOADS = 50


@dataclass(frozen=True)
class Peak:
    """One reading: how it ended, bytes of memory at its height, seconds of processor time."""

    outcome: str
    taken: int
    seconds: float


def peaks(cases: Iterable[tuple[str, Files]], folder: Path) -> Iterator[Peak]:
    """Read files of several formats, each in a fresh child of one process that imported all."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.peak"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number, (format_name, files) in enumerate(cases):
            place = folder / str(number)
            place.mkdir(parents=True)
            write(files, place)
            process.stdin.write(json.dumps([format_name, str(place), list(files)]) + "\n")
            process.stdin.flush()
            yield Peak(*json.loads(process.stdout.readline()))
            for name in files:
                (place / name).unlink(missing_ok=True)
        process.stdin.close()


def main() -> None:
    from filterdb.sources.formats import FORMATS

    list(FORMATS.values())
    for line in sys.stdin:
        source, target = os.pipe()
        child = os.fork()
        if not child:
            os.write(target, json.dumps(_read(*json.loads(line))).encode())
            os._exit(0)
        os.close(target)
        with os.fdopen(source, "rb") as answer:
            text = answer.read().decode()
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(text or json.dumps([f"status {code}", 0, 0.0]), flush=True)  # noqa: T201


def _read(format_name: str, place: str, names: list[str]) -> tuple[str, int, float]:
    from filterdb.errors import LayerError, SourceError
    from filterdb.layers.detect import find_layers
    from filterdb.sources.formats import FORMATS, ModelFile, read_model
    from tests.fuzz.oracle import Memory

    path = Path(place) / names[0]
    file = ModelFile(path, {name: Path(place) / name for name in names[1:]}, names[0])
    memory = Memory()
    memory.start()
    begun = time.process_time()
    try:
        FORMATS[format_name].companions(file)
        raw = read_model(file, format_name)
        kind = f"read {len(raw.tensors)} tensors, {len(raw.nodes)} nodes"
        find_layers(raw)
        for tensor in raw.tensors[:: max(1, len(raw.tensors) // _LOADS)]:
            try:
                tensor.load()
            except SourceError:
                continue
    except (SourceError, LayerError) as error:
        kind = f"{type(error).__name__}: {str(error)[:150]}"
    except Exception as error:  # noqa: BLE001  the test says which
        kind = f"escaped: {error!r}"[:300]
    return kind, memory.taken(), time.process_time() - begun


if __name__ == "__main__":
    main()
