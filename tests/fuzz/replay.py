"""Read a kept input again: ``python -m tests.fuzz.replay FORMAT INPUT``, as no fuzzer is about."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import packing


def cause(what: str) -> str:
    """Name what a violation comes from, the same for many inputs: its first words and the place."""
    words = re.sub(r"[^\w.:() -]+", "_", re.split(r"[:(] ?", what, maxsplit=2)[0])
    place = re.search(r" in (\S+)", what)
    return f"{words[:40]} {place[1] if place else ''}".strip()


def minimised(format_name: str, data: bytes, *, folder: Path, steps: int = 400) -> bytes:
    """Leave out of an input whatever is not needed for the same violation."""
    from tests.fuzz import oracle

    def violation(files: packing.Files) -> str:
        try:
            oracle.check(format_name, files, folder)
        except oracle.Violation as found:
            return cause(str(found))
        return ""

    files = packing.unpack(data, "model")
    wanted = violation(files)
    for name in list(files):
        size = len(files[name]) // 2
        while size and steps > 0 and wanted:
            at = 0
            while at < len(files[name]) and steps > 0:
                less = files | {name: files[name][:at] + files[name][at + size :]}
                steps -= 1
                if violation(less) == wanted:
                    files = less
                else:
                    at += size
            size //= 2
    return packing.pack(files)


def replayed(format_name: str, data: bytes, *, seconds: float = 120.0) -> str:
    """Read an input in a process of its own; return what must not have happened, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input"
        path.write_bytes(data)
        command = [sys.executable, "-m", "tests.fuzz.replay", format_name, str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:g} seconds"
    if done.returncode < 0:
        return f"the process ended with signal {-done.returncode}"
    return done.stdout.strip() if done.returncode else ""


def main() -> int:
    from tests.fuzz import oracle
    from tests.fuzz.seeds import seeds_of

    name, path = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "input"
        if name == "containers":
            from tests.fuzz.archives import check_archive as check
        else:

            def check(files: packing.Files, inside: Path, memory: oracle.Memory | None) -> str:
                return oracle.check(name, files, inside, memory).kind

        if name in ("keras_h5", "keras_v3"):
            for files in seeds_of(name):  # starts the process that reads HDF5
                check(files, inside, None)
        oracle.limit_address_space()
        try:
            print(check(packing.unpack(path.read_bytes(), "model"), inside, oracle.Memory()))  # noqa: T201
        except oracle.Violation as violation:
            print(violation)  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
