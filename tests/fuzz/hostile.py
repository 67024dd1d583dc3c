"""Files made to take the machine's memory: millions of the smallest records a format has."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tests.fuzz.grammars import write_varint
from tests.fuzz.seeds._proto import message
from tests.fuzz.structures import zipped

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

#: Format and kind of record → builder of files of about so many bytes.
HOSTILE: dict[tuple[str, str], Callable[[int], Files]] = {}


def _of(format_name: str, what: str) -> Callable[[Any], Any]:
    def register(build: Callable[[int], Files]) -> Callable[[int], Files]:
        HOSTILE[format_name, what] = build
        return build

    return register


def _times(size: int, unit: bytes, *, end: bytes = b"", start: bytes = b"") -> bytes:
    return start + unit * (size // len(unit)) + end


def _numbered(size: int, form: str, join: str = "") -> bytes:
    width = len(form % 9_999_999) + len(join)
    return join.join(form % i for i in range(size // width)).encode()


def _field(number: int, data: bytes) -> bytes:
    return write_varint(number << 3 | 2) + write_varint(len(data)) + data


# JSON -------------------------------------------------------------------------------------------

_JSON = {
    "lists": lambda n: b"[" + _times(n, b"[],", end=b"0]"),
    "dictionaries": lambda n: b"[" + _times(n, b'{"":0},', end=b"0]"),
    "wide text": lambda n: b'"' + _times(n, b"a", end='\U0001f600"'.encode()),
    "texts": lambda n: b"[" + _numbered(n, '"%x"', ",") + b"]",
    "one object": lambda n: b"{" + _numbered(n, '"%x":0', ",") + b"}",
    "deep": lambda n: b"[" * (n // 2) + b"]" * (n // 2),
    "numbers": lambda n: b"[" + _times(n, b"1e3,", end=b"0]"),
    "long number": lambda n: b"[" + _times(n, b"1", end=b"]"),
}

for _name, _make in _JSON.items():

    @_of("safetensors", f"JSON of {_name}")
    def _safetensors_json(size: int, make: Any = _make) -> Files:
        header = b'{"__metadata__":' + make(size) + b"}"
        return {"m.safetensors": struct.pack("<Q", len(header)) + header}

    @_of("tfjs", f"JSON of {_name}")
    def _tfjs_json(size: int, make: Any = _make) -> Files:
        return {"model.json": b'{"weightsManifest":[],"modelTopology":' + make(size) + b"}"}

    @_of("keras_v3", f"JSON of {_name}")
    def _keras_json(size: int, make: Any = _make) -> Files:
        return {"m.keras": zipped([("config.json", make(size), 0), ("model.weights.h5", b"x", 0)])}


@_of("safetensors", "entries")
def _safetensors_entries(size: int) -> Files:
    entry = '"%x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
    header = b"{" + _numbered(size, entry, ",") + b"}"
    return {"m.safetensors": struct.pack("<Q", len(header)) + header + bytes(4)}


@_of("tfjs", "weights")
def _tfjs_weights(size: int) -> Files:
    specs = _numbered(size, '{"name":"%x","shape":[0],"dtype":"bool"}', ",")
    text = b'{"modelTopology":0,"weightsManifest":[{"paths":["a.bin"],"weights":[' + specs + b"]}]}"
    return {"model.json": text, "a.bin": b""}


@_of("tfjs", "nodes")
def _tfjs_nodes(size: int) -> Files:
    nodes = _numbered(size, '{"name":"%x","op":"a"}', ",")
    return {"model.json": b'{"weightsManifest":[],"modelTopology":{"node":[' + nodes + b"]}}"}


@_of("tfjs", "inputs")
def _tfjs_inputs(size: int) -> Files:
    inputs = _numbered(size, '"%x"', ",")
    text = b'{"weightsManifest":[],"modelTopology":{"node":[{"name":"a","op":"b","input":['
    return {"model.json": text + inputs + b"]}]}}"}


# Pickles ----------------------------------------------------------------------------------------

_PICKLES = {
    "empty lists": b"]", "empty dictionaries": b"}", "memo": b"\x94", "numbers": b"K\x01",
    "tuples": b"N\x85", "texts": b"\x8c\x01a", "bytes": b"C\x01a", "sets": b"\x8f", "marks": b"(t",
    "long numbers": b"\x8a\x08\1\1\1\1\1\1\1\1", "floats": b"G@\x08\0\0\0\0\0\0",
    "globals": b"ca\nb\n", "calls": b"h\0)R", "objects": b"h\0)\x81", "persistent": b"h\0Q",
    "copies": b"h\0", "built": b"h\0)RN\x85b", "names": b"X\x01\0\0\0a", "doubles": b"2",
}  # fmt: skip


def _pickle(size: int, unit: bytes) -> bytes:
    return b"\x80\x04(ctorch\nFloatStorage\nq\0" + _times(size, unit, end=b"t.")


for _name, _unit in _PICKLES.items():

    @_of("torch", f"pickle of {_name}")
    def _torch_pickle(size: int, unit: bytes = _unit) -> Files:
        return {"m.pt": zipped([("m/data.pkl", _pickle(size, unit), 0)])}

    @_of("pickle", _name)
    def _pickle_file(size: int, unit: bytes = _unit) -> Files:
        return {"m.pkl": _pickle(size, unit)}


@_of("torch", "tensors")
def _torch_tensors(size: int) -> Files:
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\1tQq\1"
    start = b"\x80\2ctorch._utils\n_rebuild_tensor_v2\nq\0" + storage + b"0)q\20}("
    unit = "X\5\0\0\0%05xh\0(h\1K\0h\2h\2\x89NtR"
    body = b"".join((unit % i).encode("latin-1") for i in range(min(size // 28, 0xFFFFF)))
    members = [("m/data.pkl", start + body + b"u.", 0), ("m/data/0", bytes(4), 0)]
    return {"m.pt": zipped(members)}


@_of("torch", "code")
def _torch_code(size: int) -> Files:
    code = _times(size, b"a=[]\n")
    return _scripted(code)


@_of("torch", "brackets of code")
def _torch_brackets(size: int) -> Files:
    return _scripted(b"def f(self):\n  return [" + _times(size, b"0,") + b"]\n")


def _scripted(code: bytes) -> Files:
    data = b"\x80\2c__torch__\nM\n)\x81}(X\1\0\0\0aK\1ub."
    members = [
        ("m/data.pkl", data, 0),
        ("m/code/__torch__.py", code, 8),
        ("m/constants.pkl", b"\x80\2).", 0),
    ]
    return {"m.pt": zipped([*members, ("m/version", b"3\n", 0)])}


# Archives ---------------------------------------------------------------------------------------


def _empty_members(size: int, suffix: str, content: bytes = b"") -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(size // (100 + 2 * len(suffix) + len(content))):
            archive.writestr(zipfile.ZipInfo(f"{i:x}{suffix}"), content)
    return out.getvalue()


_HEADER = b"{'descr':'|b1','fortran_order':False,'shape':(0,)}"
_NPY = b"\x93NUMPY\1\0" + struct.pack("<H", len(_HEADER)) + _HEADER


@_of("npz", "arrays")
def _npz_arrays(size: int) -> Files:
    return {"m.npz": _empty_members(size, ".npy", _NPY)}


@_of("npz", "members")
def _npz_members(size: int) -> Files:
    return {"m.npz": _empty_members(size, "")}


@_of("npz", "bomb")
def _npz_bomb(size: int) -> Files:
    header = b"{'descr':'<f4','fortran_order':False,'shape':(%d,)}" % (size * 5)
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(4 * size * 5)
    return {"m.npz": zipped([("a.npy", array, 8)])}


@_of("npz", "wide integers")
def _npz_one(size: int) -> Files:
    header = b"{'descr':'>f4','fortran_order':True,'shape':(%d,4)}" % (size // 16)
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(size // 16 * 16)
    return {"m.npz": zipped([("a.npy", array, 0)])}


@_of("npz", "directory")
def _npz_directory(size: int) -> Files:
    """Entries that all name the same member."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *bytes(6), *bytes(3), 1, *bytes(4), 0, 0) + b"a"
    n = size // len(entry)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n & 0xFFFF, n & 0xFFFF, n * len(entry), 30, 0)
    return {"m.npz": b"PK\3\4" + bytes(26) + entry * n + end}


@_of("torch", "members")
def _torch_members(size: int) -> Files:
    return {"m.pt": _empty_members(size, "")}


@_of("keras_v3", "members")
def _keras_members(size: int) -> Files:
    return {"m.keras": _empty_members(size, "")}


@_of("mediapipe_task", "members")
def _task_members(size: int) -> Files:
    return {"m.task": _empty_members(size, "")}


@_of("mediapipe_task", "models")
def _task_models(size: int) -> Files:
    from tests.sources.formats.tflite_builder import ModelBuilder

    return {"m.task": _empty_members(size, ".tflite", ModelBuilder().bytes())}


# Protocol buffers -------------------------------------------------------------------------------


def _proto(
    format_name: str, name: str, unit: bytes, *path: int, start: bytes = b"", kind: str = ""
) -> None:
    """Register a file of `unit`s inside the messages `path`, innermost first."""

    @_of(format_name, kind or f"{'/'.join(map(str, path[::-1]))} {unit.hex(' ')}")
    def build(size: int) -> Files:
        data = _times(size, unit)
        for number in path:
            data = _field(number, data)
        return {name: start + data}


for _unit in (b"\xa2\6\0", b"\x12\0", b"\xa2\6\2\x3a\0"):
    _proto("caffe", "m.caffemodel", _unit, start=message([(1, "n"), (100, [(1, "a"), (2, "b")])]))
for _unit in (b"\x3a\0", b"\x1a\0", b"\x1a\1a", b"\x0a\0", b"\x3a\5\x2a\3\0\0\0"):
    _proto("caffe", "m.caffemodel", _unit, 100, start=message([(1, "n")]))
_proto("caffe", "m.caffemodel", b"\x25\0\0\0\0", 7, 100)
_proto("caffe", "m.caffemodel", b"\x10\1", 7, 7, 100)
for _unit in (b"\x0a\0", b"\x0a\2\x1a\0", b"\x0a\3\x0a\1a"):
    _proto("tf_graph", "m.pb", _unit)
_proto("tf_graph", "m.pb", b"\x1a\0", 1)
_proto("tf_graph", "m.pb", b"\x1a\1a", 1)
_proto("tf_graph", "m.pb", b"\x2a\0", 1)
_proto("tf_graph", "m.pb", b"\x0a\0", 2)
_proto("tf_graph", "m.pb", b"\x1a\0", 1, 2)
_proto("tf_graph", "m.pb", b"\x22\0", 1, 2)
_META = message([(1, 1)])
for _unit in (b"\x0a\0", b"\x2a\0", b"\x3a\0", b"\x12\0"):
    _proto("tf_saved_model", "saved_model.pb", _unit, 2, start=_META)
_proto("tf_saved_model", "saved_model.pb", b"\x0a\0", 2, 2, start=_META)
_proto("tf_saved_model", "saved_model.pb", b"\x0a\0", 7, 2, start=_META)
_proto("tf_saved_model", "saved_model.pb", b"\x0a\0", 1, 7, 2, start=_META)
_proto("tf_saved_model", "saved_model.pb", b"\x0a\3\x12\1a", 1, 7, 2, start=_META)
_proto("tf_saved_model", "saved_model.pb", b"\x12\0", 5, 2, start=_META)
_BLOCK = message([(1, 0), (2, -1)])
for _unit in (b"\x1a\0", b"\x22\0", b"\x1a\3\x0a\1a"):
    _proto("paddle", "m.pdmodel", _BLOCK + _unit * 9, 1)
for _unit in (b"\x1a\0", b"\x22\0"):
    _proto("paddle", "m.pdmodel", _unit, 1)
for _unit in (b"\x0a\0", b"\x22\0", b"\x0a\2\x12\0"):
    _proto("paddle", "m.pdmodel", _unit, 4, 1)
_proto("paddle", "m.pdmodel", b"\x12\0", 1, 4, 1)
_proto("paddle", "m.pdmodel", b"\x30\1", 4, 4, 1)
_proto("paddle", "m.pdmodel", b"\x0a\0", kind="blocks")
_proto("coreml", "m.mlmodel", b"\x0a\0", 500, start=message([(1, 1), (2, [])]))
_proto(
    "coreml", "m.mlmodel", b"\x0a\x0b\xa2\6\x08\xd2\5\5\x0a\3\0\0\0", 500, start=message([(1, 1)])
)
_proto("coreml", "m.mlmodel", b"\x12\0", 1, 500, start=message([(1, 1)]))
_proto("coreml", "m.mlmodel", b"\x12\1a", 1, 500, start=message([(1, 1)]))
_proto("coreml", "m.mlmodel", b"\x0a\0", 202, start=message([(1, 1)]))
_proto("coreml", "m.mlmodel", b"\x0a\0", 2, start=message([(1, 1)]))
for _unit in (b"\x1a\0", b"\x1a\2\x12\0", b"\x1a\2\x1a\0", b"\x1a\2\x2a\0"):
    _proto("coreml", "m.mlmodel", _unit, 2, 3, 2, 2, 502, start=message([(1, 7)]))
_proto("coreml", "m.mlmodel", b"\x12\0", 3, 2, 3, 2, 2, 502, start=message([(1, 7)]))
_proto("coreml", "m.mlmodel", b"\x0a\0", 2, 2, 3, 2, 3, 2, 2, 502, start=message([(1, 7)]))
_proto("coreml", "m.mlmodel", b"\x0a\2\x0a\0", 2, 2, 3, 2, 3, 2, 2, 502, start=message([(1, 7)]))
_ONNX = message([(1, 8)])
for _unit in (b"\x0a\0", b"\x2a\0", b"\x5a\0", b"\x62\0", b"\x6a\0", b"\x2a\3\x42\1a"):
    _proto("onnx", "m.onnx", _unit, 7, start=_ONNX)
for _unit in (b"\x0a\0", b"\x0a\1a", b"\x12\0", b"\x2a\0", b"\x2a\3\x0a\1a"):
    _proto("onnx", "m.onnx", _unit, 1, 7, start=_ONNX)
_proto("onnx", "m.onnx", b"\x08\1", 5, 7, start=_ONNX)
_proto("onnx", "m.onnx", b"\x6a\0", 5, 7, start=_ONNX)
_proto("onnx", "m.onnx", b"\x40\1", 5, 1, 7, start=_ONNX)
_proto("onnx", "m.onnx", b"\xca\1\0", start=_ONNX, kind="functions")


# Others -----------------------------------------------------------------------------------------


@_of("darknet", "sections")
def _darknet_sections(size: int) -> Files:
    return {"m.cfg": b"[net]\n" + _times(size, b"[a]\n"), "m.weights": bytes(20)}


@_of("darknet", "options")
def _darknet_options(size: int) -> Files:
    return {"m.cfg": b"[net]\n" + _numbered(size, "%x=1", "\n"), "m.weights": bytes(20)}


@_of("darknet", "routes")
def _darknet_routes(size: int) -> Files:
    text = b"[net]\nheight=8\nwidth=8\nchannels=1\n[convolutional]\nfilters=1\n[route]\nlayers="
    return {"m.cfg": text + _times(size, b"0,", end=b"0\n"), "m.weights": bytes(20)}


@_of("darknet", "layers")
def _darknet_layers(size: int) -> Files:
    text = b"[net]\nheight=8\nwidth=8\nchannels=1\n" + _times(size, b"[convolutional]\n")
    return {"m.cfg": text, "m.weights": bytes(20) + bytes(8 * size)}


@_of("ncnn", "layers")
def _ncnn_layers(size: int) -> Files:
    lines = _times(size, b"A b 0 0\n")
    return {"m.param": b"7767517\n%d 1\n" % (len(lines) // 8) + lines, "m.bin": b""}


@_of("ncnn", "parameters")
def _ncnn_parameters(size: int) -> Files:
    return {
        "m.param": b"7767517\n1 1\nA b 0 0 " + _numbered(size, "%d=1", " ") + b"\n",
        "m.bin": b"",
    }


@_of("ncnn", "blobs")
def _ncnn_blobs(size: int) -> Files:
    n = size // 3
    return {"m.param": b"7767517\n1 1\nA b %d 0 " % n + b"aa " * n + b"\n", "m.bin": b""}


@_of("tza", "tensors")
def _tza_tensors(size: int) -> Files:
    entries = b"".join(
        struct.pack("<H4sB", 4, struct.pack("<I", i | 0x01010101 << 7), 0) + b"f" + bytes(8)
        for i in range(size // 16)
    )
    return {
        "m.tza": b"\xd7\x41\2\0" + struct.pack("<Q", 12) + struct.pack("<I", size // 16) + entries
    }


for _name, _unit in {
    "nothing": bytes(4), "numbers": struct.pack("<id", 1, 0.5), "texts": struct.pack("<ii", 2, 0),
    "tables": b"\3\0\0\0%s\0\0\0\0", "flags": struct.pack("<ii", 5, 1),
}.items():  # fmt: skip

    @_of("torch7", _name)
    def _torch7(size: int, unit: bytes = _unit) -> Files:
        n = size // (12 + len(unit.replace(b"%s", b"0000")))
        out = [struct.pack("<iii", 3, 1, n)]
        for i in range(n):
            key = struct.pack("<id", 1, i)
            out.append(key + unit.replace(b"%s", struct.pack("<i", i + 2)))
        return {"m.t7": b"".join(out)}


@_of("torch7", "tensors")
def _torch7_tensors(size: int) -> Files:
    out = []
    n = size // 85
    for i in range(n):
        key = struct.pack("<id", 1, i)
        head = struct.pack("<iii3si17s", 4, i + 2, 3, b"V 1", 17, b"torch.FloatTensor")
        out.append(key + head + struct.pack("<iqqqi", 1, 0, 1, 1, 0))
    return {"m.t7": struct.pack("<iii", 3, 1, n) + b"".join(out)}


@_of("openvino", "layers")
def _openvino_layers(size: int) -> Files:
    layers = _numbered(size, '<layer id="%d" type="a"/>')
    return {"m.xml": b'<net version="11"><layers>' + layers + b"</layers></net>", "m.bin": b""}


@_of("openvino", "attributes")
def _openvino_attributes(size: int) -> Files:
    data = b"<data " + _numbered(size, 'a%x=""', " ") + b"/>"
    text = b'<net version="11"><layers><layer id="0" type="a">' + data
    return {"m.xml": text + b"</layer></layers></net>", "m.bin": b""}


@_of("openvino", "many attributes")
def _openvino_data(size: int) -> Files:
    layer = '<layer id="%d" type="a"><data {}/></layer>'.format(
        " ".join(f'{a}=""' for a in "abcdefghij")
    )
    layers = _numbered(size, layer)
    return {"m.xml": b'<net version="11"><layers>' + layers + b"</layers></net>", "m.bin": b""}


@_of("openvino", "ports")
def _openvino_ports(size: int) -> Files:
    ports = _numbered(size, '<port id="%d"/>')
    text = b'<net version="11"><layers><layer id="0" type="a"><output>' + ports
    return {"m.xml": text + b"</output></layer></layers></net>", "m.bin": b""}


@_of("openvino", "text")
def _openvino_text(size: int) -> Files:
    text = b'<net version="11"><layers><layer id="0" type="a"><output><port id="0"><dim>'
    return {"m.xml": text + _times(size, b"1") + b"</dim></port></output></layer></layers></net>"}


@_of("openvino", "edges")
def _openvino_edges(size: int) -> Files:
    edge = '<edge from-layer="0" from-port="0" to-layer="0" to-port="%d"/>'
    text = b'<net version="11"><layers><layer id="0" type="a"/></layers><edges>'
    return {"m.xml": text + _numbered(size, edge) + b"</edges></net>"}


@_of("tf_checkpoint", "variables")
def _checkpoint_variables(size: int) -> Files:
    from tests.fuzz.seeds.tf_checkpoint import bundle

    value = message([(1, 1), (2, [(2, [(1, 0)])])])
    return bundle([(b"%07x" % i, value) for i in range(size // 22)], b"")


@_of("tf_checkpoint", "long names")
def _checkpoint_names(size: int) -> Files:
    from tests.fuzz.seeds.tf_checkpoint import message as _message
    from tests.fuzz.sstable import write_table

    del _message
    return {
        "model.ckpt.index": _shared_keys(size, write_table),
        "model.ckpt.data-00000-of-00001": b"",
    }


def _shared_keys(size: int, write_table: Any) -> bytes:
    """A table whose keys all share a long beginning with the one before."""
    from tests.fuzz import sstable

    first = b"a" * 16_000
    header = message([(1, 1), (3, [(1, 1)])])
    body = b"\0\0" + write_varint(len(header)) + header
    body += b"\0" + write_varint(len(first)) + b"\0" + first
    for i in range(size // 8):
        body += write_varint(15_990) + write_varint(4) + b"\0" + struct.pack(">I", i)
    block = body + struct.pack("<II", 0, 1)
    handle = write_varint(0) + write_varint(len(block))
    out = block + sstable._trailer(block)
    index = sstable._block([(b"b", handle)])
    place = write_varint(len(out)) + write_varint(len(index))
    out += index + sstable._trailer(index)
    return out + (handle + place).ljust(40, b"\0") + sstable._FOOTER


@_of("tflite", "tensors")
def _tflite_tensors(size: int) -> Files:
    return _tflite(size, 2, 0)


@_of("tflite", "operators")
def _tflite_operators(size: int) -> Files:
    return _tflite(size, 2, 3)


@_of("tflite", "buffers")
def _tflite_buffers(size: int) -> Files:
    return _tflite(size, 4, None)


@_of("tflite", "codes")
def _tflite_codes(size: int) -> Files:
    return _tflite(size, 1, None)


def _tflite(size: int, outer: int, inner: int | None) -> Files:
    from tests.sources.formats.tflite_builder import Shared, serialise, u32

    many = [Shared({})] * (size // 4)
    field = many if inner is None else [{inner: many}]
    return {"m.tflite": serialise({0: u32(3), outer: field})}
