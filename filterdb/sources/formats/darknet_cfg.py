"""Darknet's ``.cfg``: sections of ``key=value`` lines, one section a layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Darknet's second names of sections.
_ALIASES = {
    "network": "net", "conv": "convolutional", "deconv": "deconvolutional", "conn": "connected",
    "max": "maxpool", "avg": "avgpool", "soft": "softmax", "lrn": "normalization",
    "gaussian_yolo": "yolo", "silence": "empty",
}  # fmt: skip
_MAX_SECTIONS = 100_000
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}(?![0-9])")


@dataclass(frozen=True)
class Section:
    """One section.

    Parameters
    ----------
    kind
        Its name, without brackets, in lower case.
    index
        Number of the layer, from 0; -1 for [net].
    line
        Where it begins, from 1.
    options
        Key → value, without any blanks; the first where a key is repeated, as Darknet takes it.
    """

    kind: str
    index: int
    line: int
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """What the layer is called: its kind and number."""
        return f"{self.kind}_{self.index}"

    def integer(self, key: str, default: int = 0) -> int:
        """Return an option as C's ``atoi`` would read it.

        Parameters
        ----------
        key
            Its name.
        default
            Darknet's default.

        Returns
        -------
        int
            Its value.

        Raises
        ------
        MalformedFileError
            If it is no number of at most nine digits.
        """
        if key not in self.options:
            return default
        return self._number(key, self.options[key])

    def integers(self, key: str) -> list[int]:
        """Return an option that is a list.

        Parameters
        ----------
        key
            Its name.

        Returns
        -------
        list of int
            Empty where it is not there.
        """
        words = [word for word in self.options.get(key, "").split(",") if word]
        return [self._number(key, word) for word in words]

    def _number(self, key: str, word: str) -> int:
        match = _INTEGER.match(word)
        if match is None:
            raise MalformedFileError(
                f"line {self.line}, [{self.kind}]: expected an integer for {key}, got {word[:40]!r}"
            )
        return int(match[0])


def parse_cfg(text: str, where: str) -> list[Section]:
    """Parse a configuration.

    Parameters
    ----------
    text
        Its content.
    where
        Its name, for messages.

    Returns
    -------
    list of Section
        [net] first.

    Raises
    ------
    MalformedFileError
        If it is no Darknet network.
    UnsafeCheckpointError
        If it has absurdly many sections.
    """
    sections: list[Section] = []
    options: dict[str, str] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = "".join(raw.split())
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            if not line.endswith("]"):
                raise MalformedFileError(
                    f"{where}, line {number}: expected ']' after {line[:40]!r}"
                )
            kind = line[1:-1].lower()
            options = {}
            sections.append(Section(_ALIASES.get(kind, kind), len(sections) - 1, number, options))
            if len(sections) > _MAX_SECTIONS:
                raise UnsafeCheckpointError(f"{where} has more than {_MAX_SECTIONS} sections")
            continue
        key, separator, value = line.partition("=")
        if not sections:
            raise MalformedFileError(f"{where}, line {number}: expected [net], got {line[:40]!r}")
        if separator:
            options.setdefault(key, value)
    if not sections or sections[0].kind != "net":
        found = f"[{sections[0].kind[:40]}]" if sections else "nothing"
        raise MalformedFileError(
            f"{where} is no Darknet network: expected [net] first, got {found}",
            tip="a .cfg of another program has the same suffix",
        )
    return sections
