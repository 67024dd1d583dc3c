"""Changes an input where it matters: inside its members, fields and values, whose lengths and
checksums are then made right again, so that damage reaches the code behind them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.fuzz import packing

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

#: Changes bytes in some way; (bytes, at most this many) → bytes. libFuzzer's own, where it runs.
Native = Callable[[bytes, int], bytes]

INTEGERS = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 33, 63, 64, 100, 127, 128, 255, 256, 1000, 4095, 4096),
    *(32767, 32768, 65535, 65536, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *(1 << 40, 1 << 48, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
#: Deeper structures than a real file has are left to the bytes.
_MAX_DEPTH = 6


@dataclass
class Mutator:
    """One change of one input.

    Parameters
    ----------
    rng
        Decides everything.
    native
        For bytes without structure.
    limit
        Bytes the input may take.
    """

    rng: random.Random
    native: Native
    limit: int
    depth: int = 0

    def value(self, data: bytes) -> bytes:
        """Change a run of bytes by the structure it is seen to have."""
        from tests.fuzz.structures import structure_of

        if self.depth < _MAX_DEPTH and data and self.rng.random() < 0.9:
            structure = structure_of(data)
            if structure is not None:
                self.depth += 1
                try:
                    return structure(data, self)
                except Exception:  # noqa: BLE001  not well formed any more, in some way
                    return self.plain(data)
                finally:
                    self.depth -= 1
        return self.plain(data)

    def plain(self, data: bytes) -> bytes:
        """Change bytes as bytes."""
        if not data:
            return self.rng.randbytes(self.rng.choice((0, 1, 4, 8, 64)))
        change = self.rng.choice(_PLAIN)
        return change(data, self)

    def integer(self, value: int = 0) -> int:
        """Return another number."""
        rng = self.rng
        match rng.randrange(4):
            case 0:
                return rng.choice(INTEGERS)
            case 1:
                return value + rng.choice((-1, 1, -2, 2, 8, -8, 256))
            case 2:
                return -rng.choice(INTEGERS)
            case _:
                return value * rng.choice((2, 3, 1024)) if rng.random() < 0.5 else value // 2


def mutate(
    data: bytes, *, limit: int, seed: int, native: Native, default: str, valid: Sequence[bytes] = ()
) -> bytes:
    """Return a changed input of at most `limit` bytes; now and then a change of a `valid` one."""
    m = Mutator(random.Random(seed), native, limit)
    if valid and m.rng.random() < 0.3:
        data = m.rng.choice(valid)
    files = packing.unpack(data, default)
    for _ in range(1 + (m.rng.random() < 0.3) + 2 * (m.rng.random() < 0.1)):
        _change(files, m)
    packed = packing.pack(files)
    return packed if len(packed) <= limit else native(data, limit)


def _change(files: Files, m: Mutator) -> None:
    rng = m.rng
    names = list(files)
    # The model's own file is where structures are; companions mostly hold plain numbers.
    name = names[0] if rng.random() < 0.6 else rng.choice(names)
    if len(names) > 1 and rng.random() < 0.04:
        other = rng.choice(names[1:])
        match rng.randrange(3):
            case 0:
                del files[other]
            case 1:
                files[name], files[other] = files[other], files[name]
            case _:
                files[other] = files[name]
        return
    files[name] = m.value(files[name])


# Plain bytes ------------------------------------------------------------------------------------


def _native(data: bytes, m: Mutator) -> bytes:
    return m.native(data, max(1, min(m.limit, 2 * len(data) + 64)))


def _number(data: bytes, m: Mutator) -> bytes:
    """Overwrite an integer, mostly an aligned one near the beginning or anywhere."""
    rng = m.rng
    width = rng.choice((1, 2, 4, 4, 4, 8))
    if len(data) < width:
        return data + bytes(width)
    reach = min(len(data), 512) if rng.random() < 0.5 else len(data)
    at = rng.randrange(max(1, reach - width + 1))
    if rng.random() < 0.7:
        at -= at % width
    order = "<" if rng.random() < 0.8 else ">"
    code = order + {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    (old,) = struct.unpack_from(code, data, at)
    new = m.integer(old) % (1 << (8 * width))
    return data[:at] + struct.pack(code, new) + data[at + width :]


def _cut(data: bytes, m: Mutator) -> bytes:
    return data[: m.rng.randrange(len(data))]


def _without(data: bytes, m: Mutator) -> bytes:
    start, stop = _range(data, m)
    return data[:start] + data[stop:]


def _twice(data: bytes, m: Mutator) -> bytes:
    start, stop = _range(data, m)
    at = m.rng.randrange(len(data) + 1)
    times = m.rng.choice((1, 1, 1, 2, 8))
    return data[:at] + data[start:stop] * times + data[at:]


def _over(data: bytes, m: Mutator) -> bytes:
    """Copy an aligned word over another: offsets of one place serve in another."""
    width = m.rng.choice((1, 4, 4, 8))
    if len(data) < 2 * width:
        return data[::-1]
    places = [width * m.rng.randrange(len(data) // width) for _ in range(2)]
    word = data[places[0] : places[0] + width]
    return data[: places[1]] + word + data[places[1] + width :]


def _flip(data: bytes, m: Mutator) -> bytes:
    changed = bytearray(data)
    for _ in range(m.rng.choice((1, 1, 2, 4))):
        changed[m.rng.randrange(len(changed))] ^= 1 << m.rng.randrange(8)
    return bytes(changed)


def _range(data: bytes, m: Mutator) -> tuple[int, int]:
    start = m.rng.randrange(len(data))
    return start, min(len(data), start + m.rng.choice((1, 2, 4, 4, 8, 16, 64)))


_PLAIN: tuple[Callable[[bytes, Mutator], bytes], ...] = (
    *(_native, _native, _native, _number, _number, _number, _number),
    *(_flip, _cut, _without, _twice, _over),
)
