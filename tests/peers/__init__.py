"""Frameworks that read the same files, each in an environment of its own.

``make peers`` creates one folder per file ``tests/peers/<name>.txt`` (the packages it holds) and
runs the tests marked ``peers``. A test writes a small script, runs it there with the file to read,
and compares what comes back as an ``.npz`` of named arrays with what the reader gives.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from filterdb.types import AnyArray

_SECONDS = 600


def peer_python(name: str) -> Path:
    """Return the Python of a peer's environment, or skip the test with the reason.

    Parameters
    ----------
    name
        Of the file of packages beside this one, without its suffix.

    Returns
    -------
    Path
        Inside ``$FILTERDB_PEERS``, else ``.peers`` in the checkout.
    """
    checkout = Path(__file__).parents[2]
    assert (checkout / "tests" / "peers" / f"{name}.txt").exists(), f"there is no peer {name}"
    folder = Path(os.environ.get("FILTERDB_PEERS", checkout / ".peers"))
    python = folder / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the environment of {name} is not there: `make peers` creates it")
    return python


def peer_arrays(name: str, script: str, *arguments: str | Path, out: Path) -> dict[str, AnyArray]:
    """Run a script in a peer's environment and return the arrays it writes.

    Parameters
    ----------
    name
        The environment.
    script
        Python source. Its last argument is the path of the ``.npz`` it must write.
    arguments
        Passed before it.
    out
        Folder for that file.

    Returns
    -------
    dict of str to ndarray
        As written.
    """
    python = peer_python(name)
    target = out / f"{name}.npz"
    command = [str(python), "-c", script, *map(str, arguments), str(target)]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "GLOG_v": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, env={**os.environ, **quiet}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(target) as arrays:
        return {key: arrays[key] for key in arrays.files}
