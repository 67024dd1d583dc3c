"""Scripts for the environment ``inference``: PaddlePaddle, OpenVINO and Core ML write models.

Each writes one model per case into a folder, and returns what the framework computes (or, for
Core ML, which computes nothing outside of macOS, the kernels it was given).
"""

from __future__ import annotations

_CASES = """
import os, sys
import numpy as np

folder, target = sys.argv[1:3]
rng = np.random.default_rng(7)
#: name: (rank, transposed, inputs, outputs, groups, kernel, stride, dilation, padding)
CASES = {
    "plain": (2, False, 3, 4, 1, (2, 3), (1, 2), (1, 1), (1, 0)),
    "dilated": (2, False, 2, 3, 1, (3, 2), (1, 1), (2, 3), (2, 1)),
    "grouped": (2, False, 4, 6, 2, (3, 2), (1, 1), (1, 1), (0, 1)),
    "depthwise": (2, False, 4, 4, 4, (3, 5), (1, 1), (1, 1), (1, 2)),
    "transposed": (2, True, 3, 2, 1, (2, 3), (2, 1), (1, 1), (0, 1)),
    "transposed_groups": (2, True, 4, 6, 2, (3, 2), (2, 2), (1, 1), (1, 0)),
    "line": (1, False, 3, 5, 1, (4,), (2,), (1,), (1,)),
    "volume": (3, False, 2, 3, 1, (2, 3, 4), (1, 1, 2), (1, 1, 1), (1, 0, 2)),
}


def shape(case):
    rank, transposed, inputs, outputs, groups, kernel = case[:6]
    if transposed:
        return (inputs, outputs // groups, *kernel)
    return (outputs, inputs // groups, *kernel)


def numbers(shape):
    # All different and none symmetric, whatever axes are swapped or turned.
    return (np.arange(np.prod(shape)).reshape(shape) % 97 * 0.25 - 5).astype(np.float32)


def image(case):
    return rng.normal(size=(1, case[2], *(9, 8, 7)[: case[0]])).astype(np.float32)


found = {}
"""

PADDLE = (
    'import os\nos.environ["FLAGS_enable_pir_api"] = "0"\n'
    + _CASES
    + """
import paddle

KINDS = {
    (1, False): paddle.nn.Conv1D, (2, False): paddle.nn.Conv2D, (3, False): paddle.nn.Conv3D,
    (2, True): paddle.nn.Conv2DTranspose,
}
for name, case in CASES.items():
    rank, transposed, inputs, outputs, groups, kernel, stride, dilation, padding = case
    layer = KINDS[rank, transposed](
        inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    layer.weight.set_value(numbers(shape(case)))
    layer.bias.set_value(np.zeros(outputs, np.float32))
    layer.eval()
    x = image(case)
    found[f"x_{name}"], found[f"y_{name}"] = x, layer(paddle.to_tensor(x)).numpy()
    spec = [paddle.static.InputSpec(x.shape, "float32")]
    paddle.jit.save(layer, os.path.join(folder, name), input_spec=spec)
np.savez(target, **found)
"""
)

#: The same in the form of version 3: a program as JSON.
PADDLE_JSON = PADDLE.replace('"FLAGS_enable_pir_api"] = "0"', '"FLAGS_enable_pir_api"] = "1"')

PADDLE_STATE = """
import sys
import numpy as np
import paddle

layers = paddle.nn.Sequential(
    paddle.nn.Conv2D(3, 4, (2, 3)), paddle.nn.BatchNorm2D(4), paddle.nn.Conv1D(4, 2, 5)
)
paddle.save(layers.state_dict(), sys.argv[1])
np.savez(sys.argv[2], **{name: value.numpy() for name, value in layers.state_dict().items()})
"""

OPENVINO = (
    _CASES
    + """
import openvino as ov
import openvino.opset13 as op

for name, case in CASES.items():
    rank, transposed, inputs, outputs, groups, kernel, stride, dilation, padding = case
    x = image(case)
    parameter = op.parameter(x.shape, np.float32)
    weights = numbers(shape(case))
    if groups > 1:
        weights = weights.reshape(groups, weights.shape[0] // groups, *weights.shape[1:])
    same = dict(strides=list(stride), pads_begin=list(padding), pads_end=list(padding),
                dilations=list(dilation))
    constant = op.constant(weights)
    if transposed and groups > 1:
        node = op.group_convolution_backprop_data(parameter, constant, **same)
    elif transposed:
        node = op.convolution_backprop_data(parameter, constant, strides=list(stride),
            pads_begin=list(padding), pads_end=list(padding), dilations=list(dilation))
    elif groups > 1:
        node = op.group_convolution(parameter, constant, **same)
    else:
        node = op.convolution(parameter, constant, **same)
    model = ov.Model([op.result(node)], [parameter], name)
    found[f"x_{name}"] = x
    found[f"y_{name}"] = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]
    ov.save_model(model, os.path.join(folder, name + ".xml"), compress_to_fp16=False)
np.savez(target, **found)
"""
)

OPENVINO_PACKED = """
import os, sys
import numpy as np
import openvino as ov
import openvino.opset13 as op
from openvino import Type

folder, target = sys.argv[1:3]
rng = np.random.default_rng(3)
shape, count = (4, 2, 3, 3), 72
found = {}
BITS = {"u1": 1, "u2": 2, "u3": 3, "u4": 4, "i4": 4, "u6": 6, "nf4": 4, "f4e2m1": 4,
        "u8": 8, "i8": 8, "f8e4m3": 8, "f8e5m2": 8, "f16": 16, "bf16": 16}
for name, bits in BITS.items():
    raw = rng.integers(0, 256, count * bits // 8, dtype=np.uint8)
    if bits == 16 or name.startswith("f8"):
        raw &= 0x3F  # no infinities
    scale = (np.arange(4, dtype=np.float32) + 1).reshape(4, 1, 1, 1) / 8
    zero = np.array([3, 1, 0, 2], np.float32).reshape(4, 1, 1, 1)
    x = op.parameter([1, 2, 5, 5], np.float32)
    holder = op.constant(np.zeros(shape, np.uint8))
    wide = op.convert(holder, np.float32)
    weights = op.multiply(op.subtract(wide, op.constant(zero)), op.constant(scale))
    model = ov.Model([op.result(op.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1]))], [x])
    path = os.path.join(folder, name)
    ov.serialize(model, path + ".xml")
    # No Python type stands for the packed ones: they are put into the written file.
    text = open(path + ".xml").read()
    data = bytearray(open(path + ".bin", "rb").read())
    import re
    layer = re.search(r'<data element_type="u8"[^>]*offset="(\\d+)" size="(\\d+)"', text)
    old, start = layer.group(0), len(data)
    new = old.replace('"u8"', f'"{name}"').replace(f'offset="{layer[1]}"', f'offset="{start}"')
    new = new.replace(f'size="{layer[2]}"', f'size="{len(raw)}"')
    precision = {"f16": "FP16"}.get(name, name.upper())
    text = text.replace(old, new).replace('precision="U8"', f'precision="{precision}"')
    open(path + ".xml", "w").write(text)
    open(path + ".bin", "wb").write(bytes(data) + raw.tobytes())
    model = ov.Core().read_model(path + ".xml")
    kernel = [o for o in model.get_ops() if o.get_type_name() == "Convolution"][0].input_value(1)
    computed = ov.Model([op.result(kernel)], [], "weights")
    found[name] = ov.compile_model(computed, "CPU")([])[0]
np.savez(target, **found)
"""

COREML = (
    _CASES
    + """
import coremltools as ct
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder, quantization_utils

for name, case in CASES.items():
    rank, transposed, inputs, outputs, groups, kernel, stride, dilation, padding = case
    weights = numbers(shape(case))
    pads = [p for p in padding for _ in range(2)]
    operation = mb.conv_transpose if transposed else mb.conv

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, inputs, *(9, 8, 7)[:rank]))])
    def program(x):
        return operation(x=x, weight=weights, strides=stride, dilations=dilation, groups=groups,
                         pad_type="custom", pad=pads)

    model = ct.convert(program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32)
    model.save(os.path.join(folder, name + ".mlpackage"))
    found[name] = weights
    if rank == 2:
        builder = NeuralNetworkBuilder(
            [("x", datatypes.Array(inputs, 9, 8))], [("y", datatypes.Array(outputs, 9, 8))]
        )
        axes = (2, 3, 0, 1) if transposed else (2, 3, 1, 0)
        stored = weights.transpose(axes)
        builder.add_convolution(
            name, inputs if transposed else inputs // groups, outputs, *kernel, *stride, "valid",
            groups, stored, None, False, is_deconv=transposed, input_name="x", output_name="y",
            dilation_factors=list(dilation), padding_top=padding[0], padding_bottom=padding[0],
            padding_left=padding[1], padding_right=padding[1],
        )
        ct.models.utils.save_spec(builder.spec, os.path.join(folder, name + ".mlmodel"))
np.savez(target, **found)
"""
)

#: Weights in fewer bits, as coremltools writes them and reads them back.
COREML_PACKED = """
import copy, os, sys
import numpy as np
import coremltools as ct
import coremltools.optimize as cto
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.milproto import load as milproto
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder, quantization_utils

folder, target = sys.argv[1:3]
rng = np.random.default_rng(5)
weights = rng.normal(size=(16, 32, 3, 5)).astype(np.float32)
found = {}


@mb.program(input_specs=[mb.TensorSpec(shape=(1, 32, 9, 9))], opset_version=ct.target.iOS18)
def program(x):
    return mb.conv(x=x, weight=weights, pad_type="valid", name="conv")


@mb.program(input_specs=[mb.TensorSpec(shape=(1, 32, 9, 9))], opset_version=ct.target.iOS16)
def older(x):
    return mb.conv(x=x, weight=weights, pad_type="valid", name="conv")


def converted(chosen, target):
    return ct.convert(copy.deepcopy(chosen), convert_to="mlprogram",
        minimum_deployment_target=target, compute_precision=ct.precision.FLOAT32)


coreml = cto.coreml
small = dict(weight_threshold=16)


def linear(**more):
    return lambda model: coreml.linear_quantize_weights(model, coreml.OptimizationConfig(
        coreml.OpLinearQuantizerConfig(mode="linear", **small, **more)))


def symmetric(**more):
    return lambda model: coreml.linear_quantize_weights(model, coreml.OptimizationConfig(
        coreml.OpLinearQuantizerConfig(mode="linear_symmetric", **small, **more)))


def palette(bits, **more):
    return lambda model: coreml.palettize_weights(model, coreml.OptimizationConfig(
        coreml.OpPalettizerConfig(mode="uniform", nbits=bits, **small, **more)))


def pruned(model):
    return coreml.prune_weights(model, coreml.OptimizationConfig(
        coreml.OpMagnitudePrunerConfig(target_sparsity=0.6, **small)))


new, old = (program, ct.target.iOS18), (older, ct.target.iOS16)
CASES = {
    "int8_old": (old, linear()), "int8_symmetric_old": (old, symmetric()),
    "palette4_old": (old, palette(4)), "palette6_old": (old, palette(6)),
    "palette1_old": (old, palette(1)), "sparse_old": (old, pruned),
    "int8": (new, linear()), "int4": (new, linear(dtype="int4")),
    "blocks": (new, linear(dtype="int4", granularity="per_block", block_size=8)),
    "palette2": (new, palette(2)), "palette3": (new, palette(3)),
    "palette_groups": (new, palette(4, granularity="per_grouped_channel", group_size=4)),
    "sparse": (new, pruned),
}
for name, ((chosen, version), compress) in CASES.items():
    model = compress(converted(chosen, version))
    path = os.path.join(folder, name + ".mlpackage")
    model.save(path)
    spec = ct.utils.load_spec(path)
    program_read = milproto.load(
        spec, specification_version=spec.specificationVersion,
        file_weights_dir=os.path.join(path, "Data", "com.apple.CoreML", "weights"))
    block = program_read.functions["main"]
    conv = [o for o in block.operations if o.op_type == "conv"][0]
    made = conv.weight.op
    value = conv.weight.val if made.op_type == "const" else made.materialized_val_inference()
    found[name] = np.asarray(value, np.float32)

builder = NeuralNetworkBuilder(
    [("x", datatypes.Array(32, 9, 9))], [("y", datatypes.Array(16, 7, 5))])
builder.add_convolution("conv", 32, 16, 3, 5, 1, 1, "valid", 1, weights.transpose(2, 3, 1, 0),
    None, False, input_name="x", output_name="y")
network = ct.models.MLModel(builder.spec)
for bits, mode in ((16, "linear"), (8, "linear"), (8, "linear_symmetric"), (5, "linear"),
                   (3, "linear_lut"), (1, "linear_lut")):
    name = f"network_{bits}_{mode}"
    quantised = quantization_utils.quantize_weights(network, bits, mode)
    spec = quantised if hasattr(quantised, "neuralNetwork") else quantised.get_spec()
    ct.models.utils.save_spec(spec, os.path.join(folder, name + ".mlmodel"))
    back = copy.deepcopy(spec)
    if bits < 16:
        quantization_utils._dequantize_nn_spec(back.neuralNetwork)
        record = back.neuralNetwork.layers[0].convolution.weights
        values = np.array(record.floatValue, np.float32)
    else:
        record = back.neuralNetwork.layers[0].convolution.weights
        values = np.frombuffer(record.float16Value, np.float16).astype(np.float32)
    found[name] = values.reshape(weights.shape)
np.savez(target, **found)
"""
