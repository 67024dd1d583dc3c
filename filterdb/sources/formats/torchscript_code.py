"""The code of TorchScript archives as text: scanned, bounded, parsed; never compiled or run.

An archive holds one file of a small subset of Python per module path. A strict scanner accepts the
tokens that TorchScript's own printer writes and no others, and counts how deep they nest, before
Python's parser sees the text: it fails unpleasantly on deep nesting.
"""

from __future__ import annotations

import ast
import re
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from filterdb.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.sources.formats.zip_entries import ZipEntries

#: Bytes Python's parser makes of a token, and of a line besides …
_TOKEN_BYTES, _LINE_BYTES = 720, 1200
#: … the most that is kept at a time (a YOLOv8's 38,000 tokens in 300 files take 32 MB) …
MAX_CODE_MEMORY = 80 * 1024 * 1024
#: … and the most that is parsed in all, files parsed again included.
_MAX_PARSED = 12 * MAX_CODE_MEMORY
MAX_CODE_BYTES = 8 * 1024 * 1024
#: Brackets, operators and dots around one another; real code stays below 60.
MAX_NESTING = 200
_MAX_BRANCHES = 60
_TOKEN = re.compile(
    r'(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<number>\d[\w.]*(?:(?<=[eE])[-+]\d+)?|\.\d+)'
    r"|(?P<name>[A-Za-z_]\w*)|(?P<space>[ ]+)|(?P<line>\n)|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<comma>,)|(?P<operator>->|[-+*/%<>=!&|^~@.:]+)"
)
_NESTING_WORDS = frozenset({"not", "lambda", "if", "else", "and", "or", "in", "is", "await"})


class CodeError(Exception):
    """The code is not what TorchScript writes; the file is read without it."""


def scan(text: str) -> int:
    """Check a file of code before it is parsed.

    Parameters
    ----------
    text
        The file.

    Returns
    -------
    int
        Bytes of memory it takes once parsed, at most.

    Raises
    ------
    CodeError
        It holds what TorchScript's printer never writes, or nests absurdly deep.
    """
    position, memory, branches = 0, 0, 0
    # How many operators stand in each open bracket since its last comma: none nests deeper.
    chains = [0]
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise CodeError(f"a character that TorchScript does not write, at {position}")
        kind, word = match.lastgroup, match.group()
        position = match.end()
        if kind != "space":
            memory += _LINE_BYTES if kind == "line" else _TOKEN_BYTES
        if kind == "open":
            chains.append(0)
        elif kind == "close":
            if len(chains) < 2:
                raise CodeError("a bracket that was never opened")
            chains.pop()
            chains[-1] += 1
        elif kind == "comma" or (kind == "line" and len(chains) == 1):
            chains[-1] = 0
        elif kind == "operator" or word in _NESTING_WORDS:
            chains[-1] += len(word) if kind == "operator" else 1
        elif kind == "name":
            branches += word == "elif"
            if text[position : position + 1] == '"':
                raise CodeError("a string with a prefix")
        elif kind == "text" and text[position : position + 1] == '"':
            raise CodeError("strings without anything between them")
        if len(chains) + sum(chains) > MAX_NESTING or branches > _MAX_BRANCHES:
            raise CodeError("expressions nested absurdly deep")
        if memory > MAX_CODE_MEMORY:
            raise CodeError("more code than any network has")
    return memory


@dataclass
class _Origin:
    """The file a function comes from: what it takes, and how many calls are in it."""

    memory: int
    users: int = 0


_Definitions: TypeAlias = dict[str, ast.ClassDef | ast.FunctionDef]


class Code:
    """Classes and functions of a code archive by their qualified names, parsed when asked for.

    Parameters
    ----------
    entries
        The zip file.
    root
        Folder of the archive in it, with its slash, or "".
    """

    def __init__(self, entries: ZipEntries, root: str) -> None:
        self._entries = entries
        self._folder = f"{root}code/"
        self._files: OrderedDict[str, tuple[_Definitions, int]] = OrderedDict()
        self._kept = self._held = 0
        self._memory = 0
        self._bytes = 0

    def find(self, name: str) -> ast.ClassDef | ast.FunctionDef | None:
        """Return a class or function.

        Parameters
        ----------
        name
            As pickles and code name it: ``__torch__.package.module.Class``.

        Returns
        -------
        ClassDef or FunctionDef or None
            None where the archive has no code of it.

        Raises
        ------
        CodeError
            Its file cannot be understood.
        """
        module, _, leaf = name.rpartition(".")
        if module not in self._files:
            found, memory = self._parse(module)
            self._files[module] = found, memory
            self._kept += memory
            # Traced modules have a class each, which is not needed again.
            while self._kept + self._held > MAX_CODE_MEMORY and len(self._files) > 1:
                self._kept -= self._files.popitem(last=False)[1][1]
            self._check()
        self._files.move_to_end(module)
        return self._files[module][0].get(leaf)

    @contextmanager
    def held(self, function: ast.FunctionDef) -> Iterator[None]:
        """Account for a function that is being followed, whose file may meanwhile be dropped.

        Parameters
        ----------
        function
            As :meth:`find` returned it, or from a class it returned.

        Yields
        ------
        None

        Raises
        ------
        CodeError
            Functions that call one another hold too much.
        """
        origin: _Origin = vars(function).get("origin") or _Origin(0)
        origin.users += 1
        self._held += origin.memory if origin.users == 1 else 0
        self._check()
        try:
            yield
        finally:
            origin.users -= 1
            self._held -= 0 if origin.users else origin.memory

    def _check(self) -> None:
        if self._kept + self._held > 3 * MAX_CODE_MEMORY // 2 or self._memory > _MAX_PARSED:
            raise CodeError("more code than any network has")

    def _parse(self, module: str) -> tuple[_Definitions, int]:
        member = f"{self._folder}{module.replace('.', '/')}.py"
        stored = self._entries.members.get(member)
        if stored is None:
            return {}, 0
        if stored.size > MAX_CODE_BYTES:
            raise CodeError("more code than any network has")
        try:
            text = self._entries.read(member).decode("utf-8")
        except (SourceError, UnicodeDecodeError) as error:
            raise CodeError(f"{member} cannot be read: {error}") from error
        memory = scan(text)
        self._memory += memory
        self._check()
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise CodeError(f"{member} is no code: {type(error).__name__}") from error
        origin = _Origin(memory)
        found: _Definitions = {}
        for part in tree.body:
            if isinstance(part, ast.ClassDef | ast.FunctionDef):
                found[part.name] = part
                for function in (part, *part.body):
                    vars(function)["origin"] = origin
        return found, memory


def dotted(node: ast.expr) -> str | None:
    """Write an expression that is nothing but names and dots as text.

    Parameters
    ----------
    node
        The expression.

    Returns
    -------
    str or None
        ``a.b.c``; None for anything else.
    """
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])
