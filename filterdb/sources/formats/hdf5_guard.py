"""A rehearsal for libraries that damaged files can kill.

libhdf5 has crashed, and has run for ever, on files with a few bytes changed. A file is therefore
read once in a child process; only what the child survives is read here. That costs about half a
second a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.base import EXPANSION_SLACK, MAX_EXPANSION

#: Listing the largest file met so far takes a tenth of a second.
TIMEOUT_SECONDS = 60.0
#: What Python and its libraries need themselves.
_OWN_MEMORY = 4 << 30
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from filterdb.sources.formats.hdf5_guard import _limit
from filterdb.sources.formats.keras_h5 import rehearse
_limit(sys.argv[2])
rehearse(sys.argv[2])
"""


def check_survivable(path: Path) -> None:
    """Read an HDF5 file in a child process and see whether it lives.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    MalformedFileError
        If the child crashed or did not come to an end. Files that are merely wrong pass: reading
        them here says better what is wrong.
    """
    if not sys.executable:
        return
    arguments = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(path)]
    try:
        child = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MalformedFileError(
            f"{path.name}: libhdf5 does not finish reading it within {TIMEOUT_SECONDS:.0f} seconds"
        ) from error
    if child.returncode < 0:
        raise MalformedFileError(
            f"{path.name}: libhdf5 crashes on it (signal {-child.returncode})",
            tip="the file is damaged; fetch it again",
        )


def _limit(path: str) -> None:
    """Keep the child from taking the machine's memory or leaving a core file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = Path(path).stat().st_size
    memory = _OWN_MEMORY + MAX_EXPANSION * size + EXPANSION_SLACK
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
