"""How many channels the values of a TensorFlow graph have: what tells a grouped convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.sources.formats.tf_operations import Operation

#: What leaves the channels of its first input as they are.
_KEEP = frozenset({
    "Identity", "Cast", "StopGradient", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Sigmoid",
    "Tanh", "Softplus", "Softsign", "BiasAdd", "BiasAddV1", "MaxPool", "AvgPool", "MaxPool3D",
    "AvgPool3D", "Pad", "PadV2", "MirrorPad", "ResizeBilinear", "ResizeNearestNeighbor",
    "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "SpaceToBatchND", "BatchToSpaceND",
    "Dropout", "Prelu", "ExpandDims", "Squeeze", "FakeQuantWithMinMaxVars", "CheckNumerics",
    "FakeQuantWithMinMaxArgs", "PlaceholderWithDefault", "Softmax", "LRN", "Rsqrt", "Exp", "Neg",
})  # fmt: skip
_JOIN = frozenset({"Add", "AddV2", "AddN", "Mul", "Sub", "RealDiv", "Maximum", "Minimum"})


class Widths:
    """Channels of values, as far as the graph tells them.

    Parameters
    ----------
    operations
        All operations.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._known: dict[str, int] = {}
        # A placeholder keeps its channels last, unless the network does not.
        self._last = not any(
            str(o.attributes.get("data_format", "")).startswith("NC") for o in operations
        )

    def add(self, operation: Operation, emitted: int | None) -> None:
        """Note what an operation writes.

        Parameters
        ----------
        operation
            One whose inputs have been noted.
        emitted
            Output channels where it has a kernel.
        """
        width = emitted
        inputs = [self._of(i) for i in operation.inputs]
        if width is None and operation.op in _KEEP and inputs:
            width = inputs[0]
        elif width is None and operation.op in _JOIN:
            width = max((w for w in inputs if w is not None), default=None)
            if len(operation.inputs) > 1 and None in inputs and width == 1:
                width = None  # may be spread over the other's channels
        elif width is None and operation.op == "Placeholder" and self._last:
            shape = operation.integers("shape") or operation.integers("_output_shapes") or ()
            width = shape[-1] if len(shape) > 2 else None
        if width is not None and width > 0:
            self._known[operation.name] = width

    def groups(self, value: str, into: int, out: int) -> int:
        """Return the groups of a convolution.

        Parameters
        ----------
        value
            What it reads.
        into, out
            Input channels of a filter; output channels.

        Returns
        -------
        int
            1 where the channels of its input are not known.
        """
        width = self._of(value)
        if width is None or into < 1 or width <= into or width % into or out % (width // into):
            return 1
        return width // into

    def _of(self, value: str) -> int | None:
        return self._known.get(value.removesuffix(":0"))
