"""Reads one input and says whether anything happened that no file may make happen.

Only :class:`SourceError` types may come out (:class:`LayerError` where layers are made); memory
stays below twice the file plus 256 MB; no file outside the input's folder is opened; nothing is
imported, executed or sent; and it ends within ten seconds of processor time.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb.errors import LayerError, SourceError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import FORMATS, ModelFile, read_model
from tests.fuzz import packing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.layers.raw import RawModel
    from tests.fuzz.packing import Files

SECONDS = 10.0
#: Bytes that may be taken above what the process had before: this many times the input …
MEMORY_FACTOR = 2
#: … plus these.
MEMORY_SLACK = 256 * 1024 * 1024
#: What one run may ask the system for at all; more is a MemoryError, which is a finding.
ADDRESS_SPACE = 2 << 30
#: Tensors loaded in a run; a file of some kilobytes may list hundreds.
MAX_LOADS = 24
#: Readers whose library runs in a process of its own: each load is another one.
GUARDED = ("keras_h5", "keras_v3")

#: Audit events a reader may never cause, by how their names begin.
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.putenv"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod"),
    *("os.truncate", "os.chown", "os.utime", "shutil.", "tempfile.", "subprocess.", "pty."),
    *("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "sqlite3.", "ctypes."),
    *("pickle.", "marshal.", "code.__new__", "exec", "compile", "cpython.run_", "function.__new__"),
)
_LOOKS = ("open", "os.listdir", "os.scandir", "os.walk", "glob.glob")
_IMPORTED_FROM = tuple({os.path.realpath(p or ".") for p in (*sys.path, sys.prefix)})
#: Packages a reader may import while it reads, by name, never by a name from the file.
_PACKAGES = {*sys.stdlib_module_names, "filterdb", "numpy", "h5py", "ml_dtypes", "_cython"}


class Violation(BaseException):
    """Something happened that no file may make happen; no handler in a reader may swallow it."""


@dataclass
class _Guard:
    """What the audit hook knows of the run under way."""

    folder: str = ""
    active: bool = False
    thread: int = 0
    found: str = ""
    installed: bool = False


_guard = _Guard()


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "read", or the type of the error that refused the file."""

    kind: str
    n_tensors: int = 0
    n_layers: int = 0


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _guard.active or threading.get_ident() != _guard.thread:
        return
    if event == "import":
        if str(arguments[0]).split(".")[0] not in _PACKAGES:
            _refuse(event, arguments)
    elif event.startswith(_FORBIDDEN):
        if not _is_ours(event, arguments):
            _refuse(event, arguments)
    elif event in _LOOKS and not _may_open(event, arguments[0], arguments[1:]):
        _refuse(event, arguments)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    _guard.found = _guard.found or f"{event} {arguments!r}"[:500]
    raise Violation(_guard.found)


def _may_open(event: str, path: Any, how: tuple[Any, ...]) -> bool:
    # Python looks for the line to show with a syntax error, even of a text it was given.
    if isinstance(path, int) or (path == "<unknown>" and _caller("ast.py")):
        return True
    flags = how[1] if len(how) > 1 and isinstance(how[1], int) else 0
    name = os.fsdecode(path if path is not None else ".")
    if name.startswith(_guard.folder + os.sep) and ".." not in name and flags & 3 == os.O_RDONLY:
        return True  # quickly: the input's folder holds no links
    real = os.path.realpath(name)
    if real == os.devnull and _caller("hdf5_guard.py"):
        return True
    if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    if real == _guard.folder or real.startswith(_guard.folder + os.sep):
        return True
    # Python importing a module of ours looks into the folders that hold it.
    return real.startswith(_IMPORTED_FROM) and _caller("importlib")


def _is_ours(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether Python itself does it: importing our own modules, or parsing a literal."""
    if event in ("exec", "compile", "marshal.loads", "code.__new__", "function.__new__"):
        return _caller("importlib") or (event == "compile" and _caller("ast.py"))
    # The rehearsal of libraries that damaged files can kill runs this very Python.
    is_python = event == "subprocess.Popen" and arguments[0] == sys.executable
    return (is_python or event in ("os.posix_spawn", "os.fork")) and _caller("hdf5_guard.py")


def _caller(part: str) -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if part in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Watch what is done from here on; `folder` is all that may be opened."""
    if not _guard.installed:
        sys.addaudithook(_audit)
        _guard.installed = True
    _guard.folder, _guard.found = os.path.realpath(folder), ""
    _guard.thread, _guard.active = threading.get_ident(), True
    try:
        yield
    finally:
        _guard.active = False
    if _guard.found:
        raise Violation(_guard.found)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Break off after this much processor time of this process."""

    def late(_signal: int, _frame: Any) -> None:
        raise Violation(f"not done after {seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Memory:
    """The resident memory of this process, and how far one run drove it up."""

    def __init__(self) -> None:
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._base = 0
        self._mark = -1
        self.worst = 0

    def _read(self, word: bytes) -> int:
        text = os.pread(self._status, 4096, 0)
        return int(text[text.index(word) + len(word) :].split(None, 1)[0]) * 1024

    def start(self) -> None:
        """Take what there is now for the base, where it has changed."""
        if self._read(b"VmHWM:") > self._mark + (1 << 20):
            os.write(self._clear, b"5")  # forget the high-water mark
            self._base = self._read(b"VmRSS:")
            self._mark = self._read(b"VmHWM:")

    def taken(self) -> int:
        """Bytes taken since the start, at their height."""
        taken = self._read(b"VmHWM:") - self._base
        self.worst = max(self.worst, taken)
        return taken


def limit_address_space(extra: int = ADDRESS_SPACE) -> None:
    """Make absurd allocations a MemoryError instead of pages nobody touches."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, resource.RLIM_INFINITY))


def check(format_name: str, files: Files, folder: Path, memory: Memory | None = None) -> Outcome:
    """Read files with one reader as an extraction would.

    Raises
    ------
    Violation
        Something happened that no file may make happen.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = packing.write(files, folder)
    if not path.is_file():
        return Outcome("nothing")
    if memory is not None:
        memory.start()
    try:
        with time_limit(SECONDS), guarded(folder), warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = _outcome(format_name, ModelFile(path, name=path.name), files)
    except Exception as error:
        raise Violation(described(error)) from error
    if memory is not None:
        check_memory(memory, sum(map(len, files.values())))
    return outcome


def check_memory(memory: Memory, size: int) -> None:
    """Raise Violation where more was taken than an input of `size` bytes may take."""
    taken = memory.taken()
    if taken > MEMORY_FACTOR * size + MEMORY_SLACK:
        raise Violation(f"took {taken:,} bytes of memory for an input of {size:,} bytes")


def _outcome(format_name: str, file: ModelFile, files: Files) -> Outcome:
    try:
        raw = _read(format_name, file, files)
    except SourceError as error:
        _check_message(error)
        return Outcome(type(error).__name__)
    loads = 1 if format_name in GUARDED else MAX_LOADS
    _use(raw, loads)
    try:
        found = find_layers(raw)
        for layer in found.layers[: loads // 4]:
            _load(layer.weights)
            if layer.read_batch_norm is not None:
                _load(layer.read_batch_norm)
    except LayerError as error:
        _check_message(error)
        return Outcome("LayerError", len(raw.tensors))
    return Outcome("read", len(raw.tensors), len(found.layers))


def _read(format_name: str, file: ModelFile, files: Files) -> RawModel:
    reader = FORMATS[format_name]
    reader.sniff(next(iter(files.values()))[:4096], file)
    there: dict[str, Path] = {}
    while True:  # an index names files that only its own companions name
        names = reader.companions(ModelFile(file.path, there, file.name))
        more = {n: file.path.parent / n for n in names if n in files and n not in there}
        if not more:
            return read_model(ModelFile(file.path, there, file.name), format_name)
        there |= more


def _use(raw: RawModel, loads: int) -> None:
    names = [tensor.name for tensor in raw.tensors]
    assert len(set(names)) == len(names), "two tensors have one name"
    for name in (*names, *(node.name for node in raw.nodes), *raw.notes):
        name.encode()  # half characters cannot be stored
    for tensor in raw.tensors[:loads]:
        values = _load(tensor.load)
        if values is not None and tensor.skip is None:
            assert values.shape == tensor.shape, (
                f"{tensor.name} of shape {tensor.shape} loads as {values.shape}"
            )
            assert values.dtype.isnative, values.dtype
            assert values.dtype.kind in "fiub", values.dtype


def _load(load: Any) -> Any:
    try:
        return load()
    except (SourceError, LayerError) as error:
        _check_message(error)
        return None


def _check_message(error: SourceError | LayerError) -> None:
    str(error).encode()
    assert len(str(error)) < 20_000, f"a message of {len(str(error))} characters"


def described(error: BaseException) -> str:
    """Name an error and the place in filterdb it came from: one line, the same for one cause."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "filterdb" in f.filename]
    last = frames[-1] if frames else None
    place = f"{Path(last.filename).name}:{last.lineno} ({last.name})" if last else "an answer"
    return f"{type(error).__name__} in {place}: {error}"[:400]
