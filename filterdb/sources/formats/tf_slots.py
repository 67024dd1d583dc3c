"""Which variables of a TensorFlow checkpoint are the network's, told by their names.

Optimizers keep slots beside a variable (``conv/kernel/Adam``, ``Adam/conv/kernel/m``), moving
averages a copy (``conv/kernel/ExponentialMovingAverage``). Of a copy and its variable the copy is
taken: it is what such networks are evaluated with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.types import Shape, SkipReason

#: Slots of TensorFlow's own optimizers and of the common ones in its ecosystem.
_SLOTS = re.compile(
    r"^(Adam|AdamW\w*|Adamax|AdaMax|Nadam|LAMB\w*|Lamb|Momentum|RMSProp\w*|Adagrad\w*|Adadelta\w*|Ftrl"
    r"|FTRL|Proximal\w+|GradientDescent|LazyAdam\w*|AdaBelief\w*|RectifiedAdam\w*|LARS\w*|SGD"
    r"|adam_[mv]|m|v|vhat|m_hat|rms|mg|momentum|momentums|velocity|accumulator|accumulators?_?\w*"
    r"|accum_grad|accum_var|linear|slow|average|ms|mom)(_\d+)?$"
)
_OPTIMIZER = re.compile(r"(^|/)[^/]*optimi[sz]er[^/]*/", re.I)
_SLOT_KEY = "/.OPTIMIZER_SLOT/"
_POWER = re.compile(r"(^|/)beta_?[12]_power(_\d+)?$")
_AVERAGE = re.compile(r"/ExponentialMovingAverage(_\d+)?$")


def skip_reasons(shapes: Mapping[str, Shape]) -> dict[str, tuple[SkipReason, str]]:
    """Tell which variables are no part of the network.

    Parameters
    ----------
    shapes
        Key of each variable in the checkpoint → shape.

    Returns
    -------
    dict
        Key → reason and detail.
    """
    found: dict[str, tuple[SkipReason, str]] = {}
    for key, shape in shapes.items():
        base = _slot_of(key, shape, shapes)
        if base is not None:
            found[key] = ("optimizer_state", f"of {base}" if base else "")
    for key in shapes:
        raw = _AVERAGE.sub("", key)
        if raw != key and raw in shapes and shapes[raw] == shapes[key]:
            if key.endswith("ExponentialMovingAverage"):
                found[raw] = ("ema_copy", f"{key!r} is taken instead")
            else:
                found[key] = ("ema_copy", f"another average of {raw!r}")
    return found


def _slot_of(key: str, shape: Shape, shapes: Mapping[str, Shape]) -> str | None:
    """Return the variable a slot belongs to, "" where it is the optimizer's own, else None."""
    if _SLOT_KEY in key:
        return key.split(_SLOT_KEY)[0]
    if _OPTIMIZER.search(key) or _POWER.search(key):
        return ""
    parts = key.split("/")
    if len(parts) < 2 or not _SLOTS.match(parts[-1]):
        return None
    # "conv/kernel/Adam", or below the optimizer's scope: "training/Adam/conv/kernel/m".
    for dropped in range(min(len(parts) - 1, 4)):
        base = "/".join(parts[dropped:-1])
        same = shapes.get(base)
        if same is not None and same == shape and base != key:
            return base
    return None
