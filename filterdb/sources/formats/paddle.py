"""PaddlePaddle inference models: a program, and the parameters beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, SourceError, UnsafeCheckpointError
from filterdb.layers.raw import RawModel
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.companion_files import companion_path
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.paddle_graph import ProgramTranslator
from filterdb.sources.formats.paddle_json import is_program, read_program
from filterdb.sources.formats.paddle_proto import ProgramParser
from filterdb.sources.formats.paddle_values import check_variables, read_combined, read_single
from filterdb.sources.formats.protobuf_wire import WireReader

if TYPE_CHECKING:
    from filterdb.sources.formats.graph_constants import Constant
    from filterdb.sources.formats.paddle_proto import Program

#: First fields of the first block: number 0, no parent.
_FIRST_BLOCK = b"\x08\x00\x10" + b"\xff" * 9 + b"\x01"
#: What older versions call the two files.
_NAMES = {"__model__": "__params__", "model": "params"}


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file begins like a program.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where its first field is a block without a parent, or it is a program in JSON.
    """
    if head[:1] != b"\n":
        return is_program(head)
    position = 1
    while position < min(len(head), 10) and head[position] >= 0x80:
        position += 1
    return head[position + 1 :].startswith(_FIRST_BLOCK)


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the files the parameters are in.

    Parameters
    ----------
    file
        The program.

    Returns
    -------
    tuple of str
        ``<name>.pdiparams``, or what older versions call it; one file per parameter where such a
        file lies beside it and the other does not.
    """
    name = file.name or file.path.name
    combined = _NAMES.get(name) or f"{Path(name).stem}.pdiparams"
    if name in _NAMES and not (file.path.parent / combined).is_file():
        names = _stored(_program(file))
        if names and _lies_beside(file, names[0]):
            return tuple(names)
    return (combined,)


def _lies_beside(file: ModelFile, name: str) -> bool:
    try:
        companion_path(file, name)
    except UnsafeCheckpointError:
        return True  # whoever fetches it refuses it by name
    except SourceError:
        return False
    return True


def read(file: ModelFile) -> RawModel:
    """List the parameters and operators of a PaddlePaddle program.

    Parameters
    ----------
    file
        The program, its parameters as companions (or beside it).

    Returns
    -------
    RawModel
        Tensors carry the program's variable names.

    Raises
    ------
    SourceError
        If program and parameters do not fit together to the last byte.
    """
    program = _program(file)
    if not program.blocks:
        raise MalformedFileError(f"{file.name or file.path.name} holds no block of operators")
    constants = _parameters(file, program)
    translator = ProgramTranslator(program, constants)
    return RawModel(
        format="paddle",
        tensors=translator.tensors(),
        nodes=tuple(translator.nodes),
        has_edges=True,
        default_layout="OIHW",
        notes=(f"PaddlePaddle program of version {_version(program.version)}",),
    )


def _program(file: ModelFile) -> Program:
    with map_file(file.path) as data:
        if is_program(bytes(data[:256])):
            return read_program(file)
        wire = WireReader(data, where=file.name or file.path.name)
        return ProgramParser(wire).program()


def _stored(program: Program) -> list[str]:
    return sorted(name for name, v in program.variables().items() if v.stored)


def _parameters(file: ModelFile, program: Program) -> dict[str, Constant]:
    names = _stored(program)
    if not names:
        return {}
    parts = list(file.companions) if file.companions else list(companions(file))
    if len(parts) == 1 and parts[0] not in names:
        path = companion_path(file, parts[0], holds="its parameters")
        constants = read_combined(path, names, parts[0])
    else:
        constants = {
            name: read_single(companion_path(file, name, holds=f"parameter {name!r}"), name)
            for name in names
        }
    check_variables(constants, program.variables())
    return constants


def _version(number: int) -> str:
    if number < 1000:  # programs in JSON count their versions
        return str(number)
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


READER = FormatReader(
    name="paddle",
    title="PaddlePaddle",
    suffixes=(".pdmodel", ".json"),
    sniff=sniff,
    read=read,
    companions=companions,
)
