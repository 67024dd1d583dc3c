"""How much memory reading takes: ``python -m tests.fuzz.peak FORMAT FILE …`` in a fresh process.

Prints JSON: how it ended, the bytes taken above what the imports took, and the seconds. Listing
the layers and loading every tensor, one at a time, counts in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.packing import Files, write

SECONDS = 300


def peak(format_name: str, files: Files, folder: Path) -> tuple[str, int, float]:
    """Read files in a process of its own: how it ended, bytes taken, seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    write(files, folder)
    command = [sys.executable, "-m", "tests.fuzz.peak", format_name, str(folder), *files]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if done.returncode:
        return f"status {done.returncode}: {done.stderr[-400:]}", 0, 0.0
    kind, taken, seconds = json.loads(done.stdout)
    return str(kind), int(taken), float(seconds)


def main() -> None:
    from filterdb.errors import LayerError, SourceError
    from filterdb.layers.detect import find_layers
    from filterdb.sources.formats import FORMATS, ModelFile, read_model
    from tests.fuzz.oracle import Memory

    format_name, folder, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    list(FORMATS.values())
    path = folder / names[0]
    there = {name: folder / name for name in names[1:]}
    memory = Memory()
    memory.start()
    begun = time.process_time()
    try:
        FORMATS[format_name].companions(ModelFile(path, there, names[0]))
        raw = read_model(ModelFile(path, there, names[0]), format_name)
        kind = f"read {len(raw.tensors)} tensors, {len(raw.nodes)} nodes"
        find_layers(raw)
        for tensor in raw.tensors[:: max(1, len(raw.tensors) // 50)]:
            try:
                tensor.load()
            except SourceError:
                continue
    except (SourceError, LayerError) as error:
        kind = f"{type(error).__name__}: {str(error)[:150]}"
    print(json.dumps([kind, memory.taken(), time.process_time() - begun]))  # noqa: T201


if __name__ == "__main__":
    main()
