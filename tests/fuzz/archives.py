"""The containers models come in, under the oracle: members listed and taken out."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import SourceError
from filterdb.sources.container_kinds import container_kind
from filterdb.sources.containers import extract_member, list_members
from filterdb.sources.pieces import (
    chunk_table,
    copy_pieces,
    is_chunk_list,
    loader_names,
    package_table,
)
from tests.fuzz import oracle, packing

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

_MEMBERS = 6


def check_archive(files: Files, folder: Path, memory: oracle.Memory | None = None) -> str:
    """Do with an archive what fetching does; nothing is written anywhere.

    Raises
    ------
    Violation
        Something happened that no archive may make happen.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = packing.write(files, folder)
    if not path.is_file():
        return "nothing"
    if memory is not None:
        memory.start()
    try:
        with oracle.time_limit(oracle.SECONDS), oracle.guarded(folder), warnings.catch_warnings():
            warnings.simplefilter("error")
            kind = _entered(path, folder)
    except Exception as error:
        raise oracle.Violation(oracle.described(error)) from error
    if memory is not None:
        oracle.check_memory(memory, sum(map(len, files.values())))
    return kind


def _entered(path: Path, folder: Path) -> str:
    try:
        if container_kind(path) is None and is_chunk_list(path):
            table = chunk_table(path, what="list")
            for name in list(table)[:_MEMBERS]:
                copy_pieces(table, name, _sink, locate=lambda part: folder / part, what="list")
        elif container_kind(path) is None and loader_names(path.name):
            loaders = [folder / n for n in loader_names(path.name) if (folder / n).is_file()]
            if not loaders:
                return "nothing"
            table = package_table(loaders[0], path.stat().st_size, what="package")
            for name in list(table)[:_MEMBERS]:
                copy_pieces(table, name, _sink, locate=lambda _own: path, what="package")
        else:
            members = [member.name for member in list_members(path, what="archive")]
            for name in [*members[:_MEMBERS], "nowhere"]:
                extract_member(path, name, _sink, what="archive", label=path.name)
    except SourceError as error:
        str(error).encode()
        return "read" if "'nowhere'" in str(error) else type(error).__name__
    except FileNotFoundError as error:  # the chunk that `locate` was asked for is not there
        if error.filename is None or not str(error.filename).startswith(str(folder)):
            raise
        return "MissingCompanionError"
    return "read"


def _sink(_block: bytes) -> None:
    """Take what comes; where it would be written is not the archive's choice."""
