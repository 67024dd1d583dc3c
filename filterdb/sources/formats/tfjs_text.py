"""TensorFlow.js models as text: JSON, or JavaScript that exports the same as a literal.

Some packages turn ``model.json`` and its shards into modules: the JSON becomes an object literal,
each shard a string in base64. Nothing is run: the literal is read word by word.
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

from filterdb.errors import FetchError, MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.file_view import map_file

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.base import ModelFile

#: Largest text read.
MAX_TEXT = 256 * 1024 * 1024
#: What Python needs for a list, a mapping and a value; all of a file's may take so much.
_COSTS = {b"[": 64, b"{": 200, b",": 64, b'"': 30}
_MOST_MEMORY = 128 << 20
_SCRIPT = (".js", ".mjs", ".cjs", ".ts")
_LITERAL = re.compile(rb"[{,(\s=]?\{\s*[\"']?(?:modelTopology|format|weightsManifest)[\"']?\s*:")
_BASE64 = re.compile(rb"[\"'`]([A-Za-z0-9+/]{16,}={0,2})[\"'`]")
_WORD = re.compile(
    r"(?P<space>\s+)|(?P<text>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')|(?P<mark>[{}\[\]:,])"
    r"|(?P<flag>!\s*[01])|(?P<void>void 0)|(?P<name>[A-Za-z_$][\w$]*)"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)",
    re.S,
)
_VALUES = {"true": "true", "false": "false", "null": "null", "undefined": "null", "NaN": "null"}


def is_script(file: ModelFile) -> bool:
    """Whether a file is JavaScript by its name.

    Parameters
    ----------
    file
        Any file.

    Returns
    -------
    bool
        True for ``.js`` and its kin.
    """
    return file.suffix in _SCRIPT


def script_suffix(name: str) -> str:
    """Return what a build step put behind the names of a model's files.

    Parameters
    ----------
    name
        ``model.min.js``.

    Returns
    -------
    str
        ``.min.js``.
    """
    stem, dot, rest = name.partition(".")
    return f"{dot}{rest}" if stem else name


def load_document(file: ModelFile) -> Any:
    """Read a model's JSON, or the literal of a script that stands for it.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    object
        As parsed.

    Raises
    ------
    FetchError
        If it cannot be opened.
    MalformedFileError
        If it is neither.
    UnsafeCheckpointError
        If it is absurdly large.
    """
    label = file.name or file.path.name
    try:
        size = file.path.stat().st_size
        if size > MAX_TEXT:
            raise UnsafeCheckpointError(
                f"{label}: {size:,} bytes of text; at most {MAX_TEXT:,} are read"
            )
        data = file.path.read_bytes()
    except OSError as error:
        raise FetchError(f"cannot open {label}: {error.strerror or error}") from error
    cost = sum(data.count(mark) * each for mark, each in _COSTS.items())
    if cost > _MOST_MEMORY + len(data) // 2:
        raise UnsafeCheckpointError(f"{label}: {size:,} bytes of text hold too many values")
    try:
        return json.loads(_literal(data, label) if is_script(file) else data)
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"{label} is no JSON: {error}") from error


def _literal(data: bytes, label: str) -> str:
    """Return a script's object literal as JSON."""
    found = _LITERAL.search(data)
    if found is None:
        raise MalformedFileError(f"{label}: a script without the literal of a model")
    text = data[data.index(b"{", found.start()) :].decode("utf-8", "replace")
    out = io.StringIO()
    depth = position = 0
    while position < len(text):
        word = _WORD.match(text, position)
        if word is None:
            raise MalformedFileError(
                f"{label}: no literal at character {position:,}: {text[position : position + 20]!r}"
            )
        position = word.end()
        kind, content = word.lastgroup, word.group()
        if kind == "mark":
            depth += (content in "{[") - (content in "}]")
            out.write(content)
            if depth <= 0:
                return out.getvalue()
        elif kind != "space":
            out.write(_as_json(kind, content, text, position))
    raise MalformedFileError(f"{label}: the literal of the model does not end")


def _as_json(kind: str | None, content: str, text: str, end: int) -> str:
    if kind == "text":
        inner = content[1:-1]
        if content[0] == "'":
            inner = inner.replace("\\'", "'").replace('"', '\\"')
        return f'"{re.sub(chr(92) * 2 + "x([0-9a-fA-F]{2})", _unicode, inner)}"'
    if kind == "flag":
        return "true" if content[-1] == "0" else "false"
    if kind == "void":
        return "null"
    if kind == "name":
        if text[end : end + 64].lstrip()[:1] == ":":
            return f'"{content}"'
        return _VALUES.get(content, "null")
    if text[end : end + 64].lstrip()[:1] == ":":  # a number as a key
        return f'"{content}"'
    whole = content.lstrip("+-").isdigit()
    return str(int(content)) if whole else repr(float(content))


def _unicode(match: re.Match[str]) -> str:
    return f"\\u00{match[1]}"


def encoded_range(path: Path, label: str) -> tuple[int, int]:
    """Find the longest string of base64 in a text.

    Parameters
    ----------
    path
        A script or JSON.
    label
        Its name, for messages.

    Returns
    -------
    tuple of (int, int)
        Position and length of the characters, without those that fill up.

    Raises
    ------
    MalformedFileError
        If there is none.
    """
    best = (0, 0)
    with map_file(path) as data:
        for match in _BASE64.finditer(data):
            start, end = match.span(1)
            if end - start > best[1]:
                best = (start, end - start)
        start, length = best
        filling = bytes(data[start : start + length][-2:]).count(b"=") if length else 0
    if not length:
        raise MalformedFileError(f"{label} holds no weights in base64")
    return start, length - filling
