"""The state of the inert pickle reader: stack, marks, memo, bounds, and how it fails."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.pickle_values import Global, PersistentId, Record, Table, refused

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable

    from filterdb.sources.formats.file_view import ByteSource

#: Open brackets; real checkpoints stay below 100.
MAX_MARKS = 10_000
MAX_NAME_BYTES = 4096
#: Objects may take as many bytes as the pickle itself and this many more. What is made of them
#: afterwards takes as much again, and all of it stays below 2 · size + 256 MB.
OBJECT_SLACK = 96 * 1024 * 1024
_MAX_LINE = 1 << 20
#: A name met for the first time: its object, its place in two tables.
_GLOBAL_BYTES = 480
_LISTED_GLOBALS = 20


class Machine:
    """The pickle machine: a stack, marks, a memo and a position in the bytes."""

    def __init__(self, data: ByteSource, start: int, end: int, where: str) -> None:
        self.data = data
        self.where = where
        self.position = start
        self.end = end
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.persistent: list[PersistentId] = []
        self.refusals: dict[str, int] = {}
        self.n_opcodes = 0
        self.budget = OBJECT_SLACK + (end - start)
        self.result: Any = None

    # -- failing -------------------------------------------------------------------------------

    def malformed(self, what: str, *, back: int = 0) -> NoReturn:
        """Raise MalformedFileError, naming the file and the byte."""
        place = f"at byte {max(self.position - back, 0)}"
        raise MalformedFileError(f"{self.where}: the pickle {what} ({place})")

    def unsafe(self, what: str) -> NoReturn:
        """Raise UnsafeCheckpointError, naming the file and the byte."""
        raise UnsafeCheckpointError(
            f"{self.where}: the pickle {what} (at byte {self.position})",
            tip="such files are refused; nothing of it was executed",
        )

    def raise_if_refused(self) -> None:
        """Raise if the pickle named what has no business in a checkpoint, and list it."""
        if not self.refusals:
            return
        names = [f"{path} (byte {at})" for path, at in self.refusals.items()]
        more = f" and {len(names) - _LISTED_GLOBALS} more" if len(names) > _LISTED_GLOBALS else ""
        raise UnsafeCheckpointError(
            f"{self.where}: the pickle refers to code that a checkpoint does not need: "
            f"{', '.join(names[:_LISTED_GLOBALS])}{more}",
            tip="refused; nothing of it was executed",
        )

    def spend(self, n_bytes: int) -> None:
        """Account for memory that opcodes take beyond the bytes they hold themselves."""
        self.budget -= n_bytes
        if self.budget < 0:
            self.unsafe("builds or copies parts until they outgrow the file many times over")

    # -- reading bytes -------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        start = self.position
        if count > self.end - start:
            self.malformed(f"ends early: {small(count)} bytes expected, {self.end - start} there")
        self.position = start + count
        return self.data[start : start + count]

    def number(self, layout: struct.Struct) -> int:
        """Return the next bytes as an integer."""
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def content(self, count: int) -> bytes:
        """Return the next `count` bytes as a value the pickle keeps."""
        raw = self.take(count)
        self.spend(count)
        return raw

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """Return the bytes up to the next line feed, which is skipped."""
        stop = self.data.find(b"\n", self.position, min(self.end, self.position + limit + 1))
        if stop < 0:
            self.malformed(f"has a text argument that does not end within {limit} bytes")
        text = self.data[self.position : stop]
        self.position = stop + 1
        return text

    def text(self, count: int) -> str:
        """Return the next `count` bytes as a string."""
        raw = self.take(count)
        try:
            text = plain_text(raw.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            self.malformed("has a string that is not UTF-8", back=count)
        self.spend(sys.getsizeof(text))
        return text

    # -- the stack -----------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the value on top of the stack."""
        if not self.stack:
            self.malformed("takes more from its stack than it put there")
        return self.stack.pop()

    def top(self) -> Any:
        """Return the value on top of the stack."""
        if not self.stack:
            self.malformed("uses an empty stack")
        return self.stack[-1]

    def mark(self) -> None:
        """Begin a new stack above the current one."""
        if len(self.below) >= MAX_MARKS:
            self.unsafe(f"opens more than {MAX_MARKS:,} marks")
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """End the current stack and return what it held."""
        if not self.below:
            self.malformed("closes a mark it never set")
        items, self.stack = self.stack, self.below.pop()
        return items

    # -- building ------------------------------------------------------------------------------

    def find(self, module: Any, name: Any) -> Global:
        """Return what stands for a global; note it down if it is refused."""
        if type(module) is not str or type(name) is not str:
            self.malformed("names a global by something else than two strings")
        if len(module) + len(name) > MAX_NAME_BYTES:
            self.unsafe(f"names a global in more than {MAX_NAME_BYTES} characters")
        key = (module, name)
        known = self.globals.get(key)
        if known is None:
            self.spend(_GLOBAL_BYTES + 4 * (len(module) + len(name)))
            known = self.globals[key] = Global(module, name)
            if refused(module, name):
                self.refusals[known.path] = self.position
        return known

    def call(self, maker: Any, args: Any) -> Any:
        """Return what stands for ``maker(*args)``."""
        if not isinstance(maker, Global | Record | PersistentId):
            self.malformed(f"calls a {type(maker).__name__}")
        if type(args) is not tuple:
            self.malformed(f"calls something with a {type(args).__name__} for arguments")
        if isinstance(maker, Global):
            build = _CONTAINERS.get((maker.module, maker.name))
            if build is not None:
                return build(self, maker, args)
        return Record(maker, args)

    def extend(self, target: Any, items: list[Any]) -> None:
        """Append items to a list or an object."""
        self.spend(9 * len(items))
        if type(target) is list:
            target.extend(items)
        elif type(target) is Record:
            target.items.extend(items)
        else:
            self.malformed(f"appends to a {type(target).__name__}")

    def set_pairs(self, target: Any, items: list[Any]) -> None:
        """Set items (key, value, key, value, …) of a table or an object."""
        if type(target) is not Table and type(target) is not Record:
            self.malformed(f"sets items of a {type(target).__name__}")
        if len(items) % 2:
            self.malformed("sets items with a key that has no value")
        self.spend(36 * len(items))
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))


def plain_text(text: str) -> str:
    """Spell half characters out: Python pickles them, and no table or terminal takes them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def small(count: int) -> str:
    """Return a number as text, whatever its size."""
    return f"{count:,}" if abs(count) < 1 << 64 else "absurdly many"


# -- containers whose constructors are understood --------------------------------------------------


def _make_table(m: Machine, kind: Global, args: tuple[Any, ...]) -> Table:
    table = Table(kind)
    source = args[-1] if args else None
    if isinstance(source, Table):
        m.spend(16 * len(source.pairs))
        table.pairs.extend(source.pairs)
    elif isinstance(source, list):
        # Python 2 and protocol 0 pass OrderedDict its items as a list of pairs.
        m.spend(72 * len(source))
        for pair in source:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                m.malformed("makes a dictionary of something that is not pairs")
            table.pairs.append((pair[0], pair[1]))
    return table


def _make_default_table(m: Machine, kind: Global, args: tuple[Any, ...]) -> Table:
    return _make_table(m, kind, args[1:])


def _make_bytes(m: Machine, kind: Global, args: tuple[Any, ...]) -> Any:
    # Protocol 2 writes bytes as ``_codecs.encode(text, "latin1")``, empty ones as ``bytes()``.
    if not args and kind.name != "encode":
        return b""
    if len(args) == 1 and type(args[0]) is bytes:
        return args[0]
    if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
        m.spend(len(args[0]))
        try:
            return args[0].encode("latin-1")
        except UnicodeEncodeError:
            m.malformed("has bytes that are none")
    return Record(kind, args)


def _make_tuple(m: Machine, kind: Global, args: tuple[Any, ...]) -> Any:
    # Paddle pickles a parameter as ``tuple((name, array))``.
    if len(args) == 1 and isinstance(args[0], list | tuple):
        m.spend(56 + 8 * len(args[0]))
        return tuple(args[0])
    return Record(kind, args)


def _make_object(m: Machine, kind: Global, args: tuple[Any, ...]) -> Any:
    # ``copyreg._reconstructor(cls, base, state)`` and ``copyreg.__newobj__(cls, *args)``.
    if not args:
        return Record(kind, args)
    maker = args[0]
    if isinstance(maker, Global):
        build = _CONTAINERS.get((maker.module, maker.name))
        if build is _make_table or build is _make_default_table:
            return Table(maker)
    if kind.name != "__newobj__":
        return Record(maker)
    m.spend(8 * len(args))
    return Record(maker, args[1:])


_CONTAINERS: dict[tuple[str, str], Callable[[Machine, Global, tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _make_table,
    ("collections", "Counter"): _make_table,
    ("collections", "defaultdict"): _make_default_table,
    ("builtins", "dict"): _make_table,
    ("__builtin__", "dict"): _make_table,
    ("_codecs", "encode"): _make_bytes,
    ("builtins", "bytes"): _make_bytes,
    ("__builtin__", "bytes"): _make_bytes,
    ("builtins", "bytearray"): _make_bytes,
    ("__builtin__", "bytearray"): _make_bytes,
    ("builtins", "tuple"): _make_tuple,
    ("__builtin__", "tuple"): _make_tuple,
    ("copyreg", "_reconstructor"): _make_object,
    ("copy_reg", "_reconstructor"): _make_object,
    ("copyreg", "__newobj__"): _make_object,
    ("copy_reg", "__newobj__"): _make_object,
}
