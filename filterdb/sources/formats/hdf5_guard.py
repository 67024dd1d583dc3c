"""libhdf5 in a process of its own, which damaged files may kill.

libhdf5 has crashed, has run for ever and has taken all memory on files with a few bytes changed.
So it never runs here: a helper process forks a child for every task, bounded in memory and time,
and passes on what the child wrote. The helper itself never touches a file; starting it costs about
half a second once, a task some milliseconds.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import IO, Any

from filterdb import errors
from filterdb.errors import FetchError, MalformedFileError, SourceError

#: Processor time: listing the largest file met so far takes a tenth of a second …
CPU_SECONDS = 2
#: … and inflating a file or a data set takes a second for this many bytes, at worst.
_SLOW_BYTES = 20 << 20
#: A child that waits (for a slow disk, for its turn) may take this many times as long.
_PATIENCE = 30
#: What a child may take beyond twice the bytes it reads.
MEMORY_SLACK = 256 << 20
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from filterdb.sources.formats.hdf5_guard import serve
serve()
"""
#: Signals that end a child in time.
_LATE = {int(getattr(signal, name)) for name in ("SIGALRM", "SIGXCPU") if hasattr(signal, name)}
_LENGTH = struct.Struct(">I")
_STATUS = struct.Struct(">i")


def ask(task: Mapping[str, Any], *, label: str) -> bytes:
    """Have a task of :mod:`filterdb.sources.formats.hdf5_arrays` done in another process.

    Parameters
    ----------
    task
        What to do, as JSON can say it.
    label
        The file's name, for messages.

    Returns
    -------
    bytes
        What the task wrote.

    Raises
    ------
    SourceError
        What the task raised, or MalformedFileError where the child crashed or did not come to an
        end.
    FetchError
        If no helper can be started.
    """
    line = json.dumps(dict(task)).encode() + b"\n"
    if sys.executable:
        status, answer = _helper(os.getpid()).ask(line)
    else:
        status, answer = _here(line)
    if -status in _LATE:
        raise MalformedFileError(
            f"{label}: libhdf5 does not finish reading it within {_seconds(task)} seconds"
        )
    if status:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise MalformedFileError(
            f"{label}: libhdf5 crashes on it ({how})", tip="the file is damaged; fetch it again"
        )
    head, _, rest = answer.partition(b"\n")
    outcome = json.loads(head)
    if "error" in outcome:
        kind = getattr(errors, str(outcome["error"]), MalformedFileError)
        raise kind(outcome["message"], tip=outcome["tip"])
    return rest


def serve() -> None:
    """Answer tasks from standard input until it ends; what the helper process runs."""
    from filterdb.sources.formats import hdf5_arrays

    hdf5_arrays.prepare()
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
    gc.collect()
    gc.freeze()
    tasks, answers = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(BrokenPipeError):
        while line := tasks.readline():
            status = _in_child(line, answers) if hasattr(os, "fork") else _in_line(line, answers)
            answers.write(_LENGTH.pack(0) + _STATUS.pack(status))
            answers.flush()


class _Helper:
    """The helper process of this one, started when first asked and again when it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = _nothing

    def ask(self, line: bytes) -> tuple[int, bytes]:
        """Return how the child ended and what it wrote."""
        with self._lock:
            for attempt in range(2):
                try:
                    return self._talk(line)
                except (OSError, EOFError) as error:
                    self._end()
                    if attempt:
                        raise FetchError(
                            f"the process that reads HDF5 files does not run: {error}",
                            tip="is there memory and a process left for it?",
                        ) from error
                except BaseException:
                    self._end()  # half an answer may be on its way
                    raise
        raise AssertionError

    def _talk(self, line: bytes) -> tuple[int, bytes]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        answer = bytearray()
        while length := _LENGTH.unpack(_exactly(process.stdout, _LENGTH.size))[0]:
            answer += _exactly(process.stdout, length)
        return _STATUS.unpack(_exactly(process.stdout, _STATUS.size))[0], bytes(answer)

    def _start(self) -> None:
        self._end()
        # One thread is all that may be running when the helper forks.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            # Isolated: nothing is imported from the working folder.
            [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # deaf to Ctrl-C, gone when its standard input ends
        )
        self._end = weakref.finalize(self, _stop, self._process)


@functools.cache
def _helper(_process: int) -> _Helper:
    return _Helper()


def _nothing() -> None:
    """Stand for the end of a process that was never started."""


def _stop(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.kill()
    process.wait()


def _exactly(stream: IO[bytes], n: int) -> bytes:
    data = stream.read(n)
    if len(data) != n:
        raise EOFError("it ended before it answered")
    return data


def _seconds(task: Mapping[str, Any]) -> int:
    work = int(task.get("size", 0)) + int(task.get("bytes", 0))
    return CPU_SECONDS + work // _SLOW_BYTES


def _in_child(line: bytes, answers: IO[bytes]) -> int:
    """Do a task in a forked child and pass on what it writes; return how it ended."""
    source, target = os.pipe()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.close(source)
            task = json.loads(line)
            _limit(task)
            with os.fdopen(target, "wb") as out:
                _do(task, out)
            code = 0
        finally:
            os._exit(code)
    os.close(target)
    with os.fdopen(source, "rb", buffering=0) as written:
        while block := written.read(1 << 20):
            answers.write(_LENGTH.pack(len(block)))
            answers.write(block)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _in_line(line: bytes, answers: IO[bytes]) -> int:
    status, data = _here(line)
    if data:
        answers.write(_LENGTH.pack(len(data)) + data)
    return status


def _here(line: bytes) -> tuple[int, bytes]:
    out = io.BytesIO()
    _do(json.loads(line), out)
    return 0, out.getvalue()


def _do(task: Mapping[str, Any], out: IO[bytes]) -> None:
    from filterdb.sources.formats import hdf5_arrays

    try:
        parts = hdf5_arrays.perform(task)
    except SourceError as error:
        said = {"error": type(error).__name__, "message": error.message, "tip": error.tip}
        parts = [json.dumps(said).encode() + b"\n"]
    else:
        out.write(b"{}\n")
    for part in parts:
        out.write(part)


def _limit(task: Mapping[str, Any]) -> None:
    """Keep the child from running for ever, taking the machine's memory or leaving a core file."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * _seconds(task))
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (_seconds(task), _seconds(task) + 1))

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm", "rb") as numbers:  # noqa: PTH123  not a path of anybody's
            taken = int(numbers.read().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux, where address space cannot be bounded either
        return
    memory = taken + 2 * int(task.get("size", 0)) + int(task.get("bytes", 0)) * 2 + MEMORY_SLACK
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        memory = min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
