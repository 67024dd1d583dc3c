"""What people see: talk and progress on standard error, data on standard output."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filterdb.errors import FilterDBError
    from filterdb.types import ProgressHook

#: Work shorter than this needs no progress line.
PATIENCE_S = 2.0
#: Control codes of C0 and C1 other than tab and line end, and the marks that reorder text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Console:
    """Where a job's words go.

    Parameters
    ----------
    quiet
        Say nothing but errors.
    show_progress
        Draw bars (terminal) or lines (elsewhere) for what takes over two seconds.
    show_hints
        Say which command comes next; a job that runs others does not need their hints.
    """

    def __init__(
        self, *, quiet: bool = False, show_progress: bool = True, show_hints: bool = True
    ) -> None:
        self.quiet = quiet
        self.show_progress = show_progress and not quiet
        self.show_hints = show_hints and not quiet

    @property
    def is_terminal(self) -> bool:
        """Whether standard error is a terminal that can redraw a line."""
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str) -> None:
        """Write one line of talk to standard error unless quiet."""
        if not self.quiet:
            _talk(text)

    def hint(self, text: str) -> None:
        """Write a line about what to do next, unless this job is part of another."""
        if self.show_hints:
            self.say(text)

    def without_hints(self) -> Console:
        """Return the same console for a job within a job."""
        return Console(quiet=self.quiet, show_progress=self.show_progress, show_hints=False)

    def error(self, error: FilterDBError) -> None:
        """Write an error and its tip to standard error, also when quiet."""
        _talk(f"error: {error.message}")
        if error.tip:
            _talk(f"tip: {error.tip}")

    @contextmanager
    def progress(self) -> Iterator[ProgressHook | None]:
        """Give a progress hook that draws here; None where nothing shall be drawn."""
        if not self.show_progress:
            yield None
        elif self.is_terminal:
            with _Bars() as bars:
                yield bars.update
        else:
            yield _Lines(self).update


def printable(text: str) -> str:
    """Return text whose control codes are spelt out: names in files may try to steer a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _talk(text: str) -> None:
    # Nobody may be listening any more (a closed pipe, a full disk): that stops no job.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(printable(text), file=sys.stderr, flush=True)


def format_bytes(n: int | float) -> str:
    """Return a byte count as people read it, in powers of 1000 ("141.3 MB")."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{int(n)} bytes"


def format_seconds(seconds: float) -> str:
    """Return a duration as people read it ("1 min 52 s")."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def plural(n: int, noun: str) -> str:
    """Return "1 model", "1,412 models"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _amount(label: str, n: int) -> str:
    return format_bytes(n) if "byte" in label or label.startswith("fetch") else f"{n:,}"


class _Bars:
    """rich bars, one a label, drawn only once the work has taken a while."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
            console=RichConsole(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, label: str, done: int, total: int | None) -> None:
        known = self._tasks.get(label)
        amount = _amount(label, done) + (f" of {_amount(label, total)}" if total else "")
        if known is None:
            self._tasks[label] = self._progress.add_task(
                label, total=total, completed=done, amount=amount
            )
        else:
            self._progress.update(known, total=total, completed=done, amount=amount)  # type: ignore[arg-type]


class _Lines:
    """One plain line per tenth, for logs; silent for what is over in two seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._started: dict[str, float] = {}
        self._tenth: dict[str, int] = {}

    def update(self, label: str, done: int, total: int | None) -> None:
        with self._lock:
            start = self._started.setdefault(label, time.monotonic())
            if not total or time.monotonic() - start < PATIENCE_S:
                return
            tenth = 10 * done // total
            if tenth <= self._tenth.get(label, 0):
                return
            self._tenth[label] = tenth
        self._console.say(
            f"{label}: {10 * tenth} % ({_amount(label, done)} of {_amount(label, total)})"
        )
