"""Archives that models come in."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

_MEMBERS = {"a/model.param": b"7767517\n0 0\n", "a/model.bin": bytes(40), "b.txt": b"x"}


def seeds(folder: Path) -> list[Files]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _MEMBERS.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (*_MEMBERS.items(), ("n" * 120, b"long")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    plain = tarred.getvalue().rstrip(b"\0") + bytes(1024)
    plain += bytes(-len(plain) % 512)
    found: list[Files] = [{"a.zip": zipped.getvalue()}, {"a.tar": plain}]
    found += [{f"a.tar.{kind.__name__}": kind.compress(plain)} for kind in (gzip, bz2, lzma)]
    package = {"files": [{"filename": "/m.tflite", "start": 0, "end": 4}], "remote_package_size": 9}
    script = b"(function(){ loadPackage(" + json.dumps(package).encode() + b"); })();"
    found.append({"m.data": bytes(9), "m_loader.js": script})
    return found
