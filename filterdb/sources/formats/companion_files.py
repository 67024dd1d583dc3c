"""Finding the files a model names beside itself, and none outside its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.catalog.uri import check_member
from filterdb.errors import FetchError, MissingCompanionError, UnsafeCheckpointError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.base import ModelFile


def companion_path(file: ModelFile, name: str, *, holds: str = "its weights") -> Path:
    """Return where a companion lies.

    Parameters
    ----------
    file
        The model; its own companions go before files in its folder.
    name
        Relative to the model's folder, as the model names it.
    holds
        What the model keeps there, for messages.

    Returns
    -------
    Path
        Of a file that is there.

    Raises
    ------
    UnsafeCheckpointError
        If the name, or a link it leads to, leaves the folder.
    MissingCompanionError
        If there is no such file.
    """
    label = file.name or file.path.name
    refusal = UnsafeCheckpointError(
        f"{label} keeps {holds} in {name[:200]!r}, which is not inside its own folder"
    )
    try:
        check_member(name)
    except UsageError as error:
        raise refusal from error
    given = file.companions.get(name)
    path = file.path.parent / name if given is None else given
    try:
        inside = given is not None or path.resolve().is_relative_to(file.path.parent.resolve())
        there = path.is_file()
    except (OSError, RuntimeError, ValueError):  # a name too long, links that go round
        inside, there = True, False
    if not inside:
        raise refusal
    if not there:
        raise MissingCompanionError(
            f"{label} keeps {holds} in {name[:200]!r}, which is not there",
            tip="fetch it too, into the same folder, or name it under companions",
        )
    return path


def file_size(path: Path) -> int:
    """Return a file's size in bytes.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    int
        Its size.

    Raises
    ------
    FetchError
        If it cannot be told.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise FetchError(f"cannot read {path.name}: {error.strerror or error}") from error
