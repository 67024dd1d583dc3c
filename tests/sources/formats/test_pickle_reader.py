"""The inert pickle reader: equal to pickle on plain data, harmless on everything else."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats import pickle_reader
from filterdb.sources.formats.pickle_reader import read_pickle
from filterdb.sources.formats.pickle_values import Global, PersistentId, Record, Table, refused


def plain(value: Any) -> Any:
    """Turn inert containers back into Python's own, for comparison."""
    if isinstance(value, Table):
        return {plain(k): plain(v) for k, v in value.pairs}
    if isinstance(value, Record):
        items = [*(value.args[0] if value.args else ()), *value.items]
        kind = value.kind
        assert kind is not None
        return {"set": set, "frozenset": frozenset}[kind.name](plain(v) for v in items)
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    return value


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
)
_KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text())
_DATA = st.recursive(
    _SCALARS | st.sets(st.integers() | st.text()) | st.frozensets(st.integers()),
    lambda inner: (
        st.lists(inner) | st.dictionaries(_KEYS, inner) | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=20,
)


@given(_DATA, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_plain_data_comes_back_as_pickle_gives_it(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    read = read_pickle(data, where="data")
    assert plain(read.value) == value
    assert read.end == len(data)
    assert read.n_opcodes == len(list(pickletools.genops(data)))


def test_shared_and_cyclic_parts_stay_shared() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    read = read_pickle(pickle.dumps([loop, loop]), where="data").value
    assert read[0] is read[1]
    assert read[0][1] is read[0]


def test_reads_the_pickle_inside_larger_data() -> None:
    inner = pickle.dumps({"a": 1})
    read = read_pickle(b"xyz" + inner + b"more", 3, where="data")
    assert read.value.named() == {"a": 1}
    assert read.end == 3 + len(inner)


def test_ordered_and_default_dictionaries_are_tables() -> None:
    value = (
        collections.OrderedDict(a=1, b=2),
        collections.defaultdict(list, {"c": [3]}),
        collections.Counter("aab"),
    )
    for protocol in range(6):
        tables = read_pickle(pickle.dumps(value, protocol=protocol), where="data").value
        assert [t.named() for t in tables] == [{"a": 1, "b": 2}, {"c": [3]}, {"a": 2, "b": 1}]
        assert tables[0].kind == Global("collections", "OrderedDict")


def test_objects_become_records_with_their_state() -> None:
    for protocol in range(6):
        data = pickle.dumps(argparse.Namespace(epochs=3), protocol=protocol)
        record = read_pickle(data, where="data").value
        assert isinstance(record, Record)
        assert record.kind == Global("argparse", "Namespace")
        assert record.attributes() == {"epochs": 3}


def test_python_2_strings_and_old_style_instances() -> None:
    data = (
        b"(dp0\nS'caf\\xc3\\xa9'\np1\nI1\nsS'raw'\nS'\\xff\\x00\\n'\nsS'object'\n"
        b"(I5\nI6\nimod\nOld\np2\n(dS'x'\nL7L\nsbs."
    )
    table = read_pickle(data, where="data").value.named()
    assert table["caf\u00e9"] == 1
    assert table["raw"] == "\xff\x00\n"
    assert table["object"].kind == Global("mod", "Old")
    assert table["object"].args == (5, 6)
    assert table["object"].attributes() == {"x": 7}


def test_persistent_ids_are_kept() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", "k") if obj == "out" else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(["out", "in"])
    read = read_pickle(stream.getvalue(), where="data")
    assert isinstance(read.value[0], PersistentId)
    assert [p.value for p in read.persistent] == [("storage", "k")]


class _Call:
    """Pickles as a call of anything."""

    def __init__(self, maker: Any, *args: Any) -> None:
        self.maker, self.args = maker, args

    def __reduce__(self) -> Any:
        return self.maker, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "maker",
    [os.system, subprocess.check_output, eval, exec, __import__, pickle.loads, sys.exit],
    ids=lambda maker: maker.__name__,
)
def test_what_runs_code_is_refused_listed_and_not_run(
    tmp_path: Any, maker: Any, protocol: int
) -> None:
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()"
    payload = f"touch {marker}" if maker in (os.system, subprocess.check_output) else code
    data = pickle.dumps({"state_dict": [_Call(maker, payload)]}, protocol=protocol)
    with pytest.raises(UnsafeCheckpointError, match=maker.__name__) as caught:
        read_pickle(data, where="bad.pt")
    assert "bad.pt" in str(caught.value)
    assert "byte" in str(caught.value)
    assert not marker.exists()


def test_a_harmful_pickle_broken_behind_its_payload_is_still_named() -> None:
    data = pickle.dumps(_Call(os.system, "true"), protocol=2)[:-1]
    with pytest.raises(UnsafeCheckpointError, match="system"):
        read_pickle(data, where="data")


def test_many_harmful_globals_are_counted_not_all_listed() -> None:
    data = b"(" + b"".join(b"cos\nf%d\n" % i for i in range(50)) + b"l."
    with pytest.raises(UnsafeCheckpointError, match="and 30 more"):
        read_pickle(data, where="data")


@pytest.mark.parametrize(
    ("module", "name", "verdict"),
    [
        ("posix", "system", True),
        ("os.path", "join", True),
        ("builtins", "eval", True),
        ("__builtin__", "execfile", True),
        ("torch.serialization", "os.system", True),
        ("some.package", "helper.__globals__", True),
        ("torch", "load", True),
        ("torch.hub", "load", True),
        ("numpy.testing._private.utils", "runstring", True),
        ("code", "InteractiveInterpreter", True),
        ("code.models", "UNet", False),
        ("builtins", "getattr", False),
        ("builtins", "set", False),
        ("collections", "OrderedDict", False),
        ("torch._utils", "_rebuild_tensor_v2", False),
        ("torch.nn.modules.conv", "Conv2d", False),
        ("ultralytics.nn.tasks", "DetectionModel", False),
        ("models.system.net", "System", False),
        ("pathlib", "PosixPath", False),
        ("numpy", "dtype", False),
    ],
)
def test_which_globals_are_refused(module: str, name: str, verdict: bool) -> None:
    assert refused(module, name) is verdict


def _assert_refuses_quickly(data: bytes, error: type[SourceError], match: str) -> None:
    with pytest.raises(error, match=match):
        read_pickle(data, where="data")


def test_absurd_sizes_are_noticed_before_anything_is_allocated() -> None:
    for code, size in ((b"\x8e", 8), (b"\x8d", 8), (b"\x96", 8), (b"B", 4), (b"X", 4)):
        huge = (b"\xff" * (size - 1) + b"\x7f") if size == 8 else b"\xff\xff\xff\xff"
        _assert_refuses_quickly(code + huge + b"abc.", MalformedFileError, "ends early")
    _assert_refuses_quickly(b"\x8b\xff\xff\xff\x7f.", UnsafeCheckpointError, "integer of")
    _assert_refuses_quickly(b"\x8b\xff\xff\xff\xff.", UnsafeCheckpointError, "integer of")
    _assert_refuses_quickly(b"\x95" + b"\xff" * 8 + b"N.", MalformedFileError, "frame")
    _assert_refuses_quickly(b"I" + b"9" * 5000 + b"\n.", MalformedFileError, "number")
    _assert_refuses_quickly(b"c" + b"m" * 9000 + b"\nn\n.", MalformedFileError, "4096")


def test_too_many_opcodes_and_marks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_OPCODES", 1000)
    _assert_refuses_quickly(b"]" * 5000 + b".", UnsafeCheckpointError, "1,000 opcodes")
    monkeypatch.undo()
    _assert_refuses_quickly(b"(" * 20_000 + b".", UnsafeCheckpointError, "marks")


def test_deep_nesting_costs_no_recursion() -> None:
    depth = 300_000
    data = b"N" + b"\x85" * depth + b"."
    value = read_pickle(data, where="data").value
    for _ in range(depth):
        (value,) = value
    assert value is None


def test_deeply_nested_keys_are_never_hashed() -> None:
    data = b"}" + b")" + b"\x85" * 300_000 + b"Ns."
    table = read_pickle(data, where="data").value
    assert len(table.pairs) == 1


def test_copies_of_copies_are_bounded() -> None:
    # One long text, encoded over and over: each call is 10 bytes and makes as many megabytes.
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    data = b"c_codecs\nencode\n\x940" + text + b"\x940" + b"X\x06\x00\x00\x00latin1\x940"
    data += b"(" + b"h\x00h\x01h\x02\x86R" * 1000 + b"l."
    _assert_refuses_quickly(data, UnsafeCheckpointError, "builds or copies parts")
    pairs = b"(" + b"NN\x86" * 20_000 + b"l\x940ccollections\nOrderedDict\n\x940"
    data = pairs + b"(" + b"h\x01h\x00\x85R" * 1000 + b"l."
    _assert_refuses_quickly(data, UnsafeCheckpointError, "builds or copies parts")


def test_self_calling_constructors_do_not_recurse() -> None:
    new = b"ccopyreg\n__newobj__\n\x940"
    data = new + b"h\x00(" + b"h\x00" * 100_000 + b"tR."
    assert isinstance(read_pickle(data, where="data").value, Record)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (b"", MalformedFileError, "ends early"),
        (b".", MalformedFileError, "stack"),
        (b"\xff.", MalformedFileError, "no opcode 0xff"),
        (b"\x80\x06N.", UnsupportedFormatError, "protocol 6"),
        (b"\x97.", UnsupportedFormatError, "outside"),
        (b"\x82\x01.", UnsupportedFormatError, "outside"),
        (b"h\x05.", MalformedFileError, "memo 5"),
        (b"K\x01)R.", MalformedFileError, "calls a int"),
        (b"cm\nn\nNR.", MalformedFileError, "NoneType for arguments"),
        (b"K\x01Na.", MalformedFileError, "appends to a int"),
        (b"K\x01NNs.", MalformedFileError, "items of a int"),
        (b"}(Nu.", MalformedFileError, "no value"),
        (b"NN\x93.", MalformedFileError, "two strings"),
        (b"}}b}b.", MalformedFileError, "twice"),
        (b"Sabc\n.", MalformedFileError, "quotes"),
        (b"X\x01\x00\x00\x00\xff.", MalformedFileError, "UTF-8"),
        (b"t.", MalformedFileError, "mark"),
        (b"(o.", MalformedFileError, "of nothing"),
        (b"p-1\n.", MalformedFileError, "negative"),
        (b"Fabc\n.", MalformedFileError, "number"),
    ],
)
def test_broken_pickles_say_what_and_where(
    data: bytes, error: type[SourceError], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        read_pickle(data, where="some.pt")
    assert "some.pt" in str(caught.value)


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_a_value_or_a_source_error(data: bytes) -> None:
    with contextlib.suppress(SourceError):
        read_pickle(data, where="data")


_SAMPLE = pickle.dumps(
    {"a": [1, 2.5, "x", b"y" * 300], "b": argparse.Namespace(z=(1, 2)), "c": {3, 4}}, protocol=2
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_pickles_give_a_value_or_a_source_error(data: st.DataObject) -> None:
    raw = bytearray(_SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SourceError):
        read_pickle(bytes(raw), where="data")
