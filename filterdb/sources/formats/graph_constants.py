"""Constants of a graph as it uses them: stored values, and the small steps between file and kernel.

Inference formats keep integers and let the graph subtract zero points, multiply by scales and
reshape before a convolution reads the result. A :class:`Constant` is such a value: known by the
stored tensor it comes from, computed only when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.layers.raw import Tensor

if TYPE_CHECKING:
    from filterdb.types import AnyArray, Shape, SkipReason

Load: TypeAlias = Callable[[], "AnyArray"]

#: Steps of one constant, those of its operands counted; more is no weight but an algorithm.
MAX_STEPS = 64
#: Numbers looked up at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the network's input.

    Parameters
    ----------
    base
        Name of the stored tensor.
    shape
        After all steps.
    dtype
        As stored, before any step.
    load
        Computes it.
    storage
        See :class:`filterdb.layers.raw.Tensor`.
    scaled
        Whether arithmetic happened on the way.
    steps
        How many.
    parameters
        Names of the stored tensors used as scales, zero points and ranges.
    skip
        Why the stored tensor cannot be read, if it cannot.
    """

    base: str
    shape: Shape
    dtype: str
    load: Load
    storage: tuple[Any, ...] | None = None
    scaled: bool = False
    steps: int = 0
    parameters: tuple[str, ...] = ()
    skip: tuple[SkipReason, str] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def tensor(self, name: str) -> Tensor:
        """Return it as a tensor of a model.

        Parameters
        ----------
        name
            What to call it.

        Returns
        -------
        Tensor
            Float32 where arithmetic happened.
        """
        return Tensor(
            name, self.shape, self.dtype, self.load,
            quantised=self.scaled, storage=self.storage, skip=self.skip,
        )  # fmt: skip

    def reshaped(self, shape: Shape) -> Constant | None:
        """Give it another shape.

        Parameters
        ----------
        shape
            Of as many elements; one extent may be −1.

        Returns
        -------
        Constant or None
            None where the elements do not fit.
        """
        known = int(np.prod([n for n in shape if n != -1], dtype=np.int64))
        if shape.count(-1) == 1 and known > 0 and self.size % known == 0:
            shape = tuple(self.size // known if n == -1 else n for n in shape)
        if any(n < 0 for n in shape) or int(np.prod(shape, dtype=np.int64)) != self.size:
            return None
        return self._then(Reshaped(self.load, shape), shape)

    def transposed(self, order: tuple[int, ...]) -> Constant | None:
        """Permute its axes.

        Parameters
        ----------
        order
            Axis i of the result is axis ``order[i]`` of this one.

        Returns
        -------
        Constant or None
            None where `order` is no permutation of its axes.
        """
        if sorted(order) != list(range(len(self.shape))):
            return None
        shape = tuple(self.shape[i] for i in order)
        return self._then(Transposed(self.load, order), shape)

    def combined(self, operation: str, *others: Constant, swapped: bool = False) -> Constant | None:
        """Apply arithmetic with smaller constants.

        Parameters
        ----------
        operation
            A key of :data:`ARITHMETIC`.
        others
            The other operands, which must broadcast to this one's shape.
        swapped
            This is the second operand.

        Returns
        -------
        Constant or None
            None where the shapes do not fit, or the steps become too many.
        """
        if not all(_broadcasts(other.shape, self.shape) for other in others):
            return None
        steps = self.steps + 1 + sum(other.steps for other in others)
        if steps > MAX_STEPS:
            return None
        names = (n for other in others for n in (other.base, *other.parameters) if n)
        values = Computed(operation, self.load, tuple(o.load for o in others), swapped)
        skip = next((c.skip for c in (self, *others) if c.skip is not None), None)
        return replace(
            self, load=values, scaled=True, steps=steps, skip=skip,
            parameters=tuple(dict.fromkeys((*self.parameters, *names))),
        )  # fmt: skip

    def derived(
        self,
        load: Load,
        shape: Shape,
        *,
        parameters: tuple[Constant, ...] = (),
        scaled: bool = True,
    ) -> Constant | None:
        """Decompress it in a way of the format's own.

        Parameters
        ----------
        load
            Computes the result.
        shape
            Of the result.
        parameters
            Other constants it needs.
        scaled
            Whether values change.

        Returns
        -------
        Constant or None
            None where the steps become too many.
        """
        steps = self.steps + 1 + sum(other.steps for other in parameters)
        if steps > MAX_STEPS:
            return None
        names = (n for other in parameters for n in (other.base, *other.parameters) if n)
        skip = next((c.skip for c in (self, *parameters) if c.skip is not None), None)
        return replace(
            self, load=load, shape=shape, scaled=scaled, steps=steps, skip=skip,
            parameters=tuple(dict.fromkeys((*self.parameters, *names))),
        )  # fmt: skip

    def _then(self, load: Load, shape: Shape) -> Constant | None:
        if self.steps >= MAX_STEPS:
            return None
        return replace(self, load=load, shape=shape, steps=self.steps + 1)


@dataclass(frozen=True, slots=True)
class Number:
    """One number a graph states beside its tensors."""

    value: float

    def __call__(self) -> AnyArray:
        """Return it as an array without axes."""
        return np.array(self.value, np.float32)


def number(value: float) -> Constant:
    """Return a constant of one number.

    Parameters
    ----------
    value
        The number.

    Returns
    -------
    Constant
        Of no axes and no name.
    """
    return Constant("", (), "float32", Number(value))


def look_up(table: AnyArray, codes: AnyArray) -> AnyArray:
    """Replace codes by the numbers of a table, a block at a time.

    Parameters
    ----------
    table
        (n,) numbers.
    codes
        Integers, any shape; numpy would make eight bytes of each.

    Returns
    -------
    ndarray
        Shape of `codes`.

    Raises
    ------
    MalformedFileError
        If a code lies beyond the table.
    """
    if codes.size and int(codes.max()) >= table.size:
        raise MalformedFileError(f"place {int(codes.max())} in a table of {table.size} numbers")
    flat = codes.reshape(-1)
    found = np.empty(flat.size, table.dtype)
    for start in range(0, flat.size, _BLOCK):
        found[start : start + _BLOCK] = table[flat[start : start + _BLOCK]]
    return found.reshape(codes.shape)


def _broadcasts(small: Shape, large: Shape) -> bool:
    if len(small) > len(large):
        return False
    tail = large[len(large) - len(small) :]
    return all(a in (1, b) for a, b in zip(small, tail, strict=True))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Values filterdb does not read."""

    why: str

    def __call__(self) -> AnyArray:
        """Refuse."""
        raise UnsupportedFormatError(self.why)


@dataclass(frozen=True, slots=True)
class Reshaped:
    """Values in another shape."""

    source: Load
    shape: Shape

    def __call__(self) -> AnyArray:
        """Compute them."""
        values = self.source()
        if values.size != int(np.prod(self.shape, dtype=np.int64)):
            raise MalformedFileError(f"a constant of shape {values.shape} made {self.shape}")
        return values.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Transposed:
    """Values with their axes permuted."""

    source: Load
    order: tuple[int, ...]

    def __call__(self) -> AnyArray:
        """Compute them."""
        return np.ascontiguousarray(np.transpose(self.source(), self.order))


@dataclass(frozen=True, slots=True)
class Computed:
    """Values after arithmetic with others, in single precision (double where stored so)."""

    operation: str
    source: Load
    others: tuple[Load, ...]
    swapped: bool = False

    def __call__(self) -> AnyArray:
        """Compute them."""
        values = _floating(self.source())
        others = [_floating(other()) for other in self.others]
        function = ARITHMETIC[self.operation]
        # Scales that are not finite make weights that are not, which is for later stages to say.
        with np.errstate(all="ignore"):
            if not isinstance(function, np.ufunc):
                return np.asarray(function(values, *others))
            operands = (others[0], values) if self.swapped else (values, others[0])
            if not values.flags.writeable:
                return np.asarray(function(*operands))
            # What has just been loaded belongs to nobody else: half the memory.
            return np.asarray(function(*operands, out=values, casting="same_kind"))


def _floating(values: AnyArray) -> AnyArray:
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)


def _fake_quantise(
    values: AnyArray,
    low: AnyArray,
    high: AnyArray,
    low_out: AnyArray,
    high_out: AnyArray,
    levels: AnyArray,
) -> AnyArray:
    """Quantise and dequantise in one step (OpenVINO, FakeQuantize-1)."""
    spread = levels - np.float32(1)
    steps = np.round((values - low) / (high - low) * spread)
    result = steps / spread * (high_out - low_out) + low_out
    result = np.where(values > np.maximum(low, high), high_out, result)
    return np.asarray(np.where(values <= np.minimum(low, high), low_out, result))


#: What graphs do to weights, by filterdb's word for it.
ARITHMETIC: Mapping[str, Callable[..., AnyArray]] = MappingProxyType(
    {
        "add": np.add,
        "subtract": np.subtract,
        "multiply": np.multiply,
        "divide": np.divide,
        "fake_quantise": _fake_quantise,
    }
)
