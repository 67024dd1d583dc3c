"""An inert pickle reader: it interprets the opcodes and executes nothing.

Every global becomes a :class:`~filterdb.sources.formats.pickle_values.Global`, every call a
:class:`~filterdb.sources.formats.pickle_values.Record` of what would have been called with what.
Only constructors of plain containers (``OrderedDict`` and its like) are understood here; tensors
are understood by :mod:`filterdb.sources.formats.torch_tensors`. The pickle module is not used.

Protocols 0 to 5 are read. What one opcode can allocate is bounded by the bytes it consumes, the
number of opcodes is bounded, and nothing recurses, so that no pickle can exhaust the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.sources.formats.pickle_machine import Machine
from filterdb.sources.formats.pickle_opcodes import COSTS, HANDLERS, STOP

if TYPE_CHECKING:
    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.sources.formats.pickle_values import Global, PersistentId

#: A checkpoint of 1,000 tensors takes 50,000. Memory is bounded apart from this.
MAX_OPCODES = 4_000_000


@dataclass(frozen=True)
class Unpickled:
    """The outcome of reading one pickle.

    Parameters
    ----------
    value
        Plain scalars, lists, tuples and the inert classes of ``pickle_values``.
    end
        Offset behind the STOP opcode.
    globals
        Every global the pickle names, in order of first mention.
    persistent
        Every object the pickle expects from outside, in order of mention.
    n_opcodes
        Opcodes read: no honest object graph has more parts than these.
    """

    value: Any
    end: int
    globals: tuple[Global, ...]
    persistent: tuple[PersistentId, ...]
    n_opcodes: int


def read_pickle(
    data: ByteSource, start: int = 0, end: int | None = None, *, where: str
) -> Unpickled:
    """Read one pickle without executing anything.

    Parameters
    ----------
    data
        The bytes, possibly of a mapped file in which the pickle is only a part.
    start, end
        Where to begin and where to stop at the latest.
    where
        Name of the file (and part) for error messages.

    Returns
    -------
    Unpickled
        The inert object graph; it may hold cycles and shared parts.

    Raises
    ------
    MalformedFileError
        The bytes are no pickle, or it ends early.
    UnsafeCheckpointError
        It names globals that run programs or code, or breaks a bound.
    UnsupportedFormatError
        It needs what only its writer has (out-of-band buffers, extension codes).
    """
    machine = Machine(data, start, len(data) if end is None else end, where)
    try:
        _run(machine)
    except (MalformedFileError, UnsupportedFormatError):
        # Broken on purpose behind the harmful part: what matters is the harmful part.
        machine.raise_if_refused()
        raise
    machine.raise_if_refused()
    return Unpickled(
        machine.result,
        machine.position,
        tuple(machine.globals.values()),
        tuple(machine.persistent),
        machine.n_opcodes,
    )


def _run(machine: Machine) -> None:
    """Interpret opcodes until STOP."""
    data, end = machine.data, machine.end
    for count in range(1, MAX_OPCODES + 1):
        position = machine.position
        if position >= end:
            machine.malformed("ends early, without the opcode that should end it")
        code = data[position]
        machine.position = position + 1
        if code == STOP:
            machine.n_opcodes = count
            machine.result = machine.pop()
            return
        machine.spend(COSTS[code])
        handler = HANDLERS.get(code)
        if handler is None:
            machine.malformed(f"has no opcode 0x{code:02x}", back=1)
        handler(machine)
    machine.unsafe(f"has more than {MAX_OPCODES:,} opcodes")
