"""Moving averages beside the weights they average, in files that hold both side by side.

Networks are evaluated with the average (EMA, SWA), so of a pair the average is taken and the other
becomes a row of ``skipped``. Told by names alone: ``ema.conv.weight`` or ``model_ema.conv.weight``
beside ``conv.weight`` or ``model.conv.weight``, ``params_ema.…`` beside ``params.…``,
``conv.weight_ema`` and ``conv/kernel/ExponentialMovingAverage`` beside what they end in. An average
under names without dots (latent diffusion's ``model_ema.diffusion_modelconv_inweight``) gives way:
its names say nothing of the network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filterdb.layers.raw import Tensor
    from filterdb.types import SkipReason

_AVERAGE = re.compile(
    r"^(ema|emas|ema_?(model|net\w*|params|state|weights?)|\w+_ema|(averaged?|avg|swa)_(model|params)|"
    r"averaged|swa|shadow(_params|_variables)?|ExponentialMovingAverage(_\d+)?)$",
    re.I,
)
_WRAPPERS = frozenset(
    {"model", "module", "params", "net", "network", "state_dict", "online", "raw"}
)


def without_copies(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Mark, of each weight that stands with its average, the one that is not taken.

    Parameters
    ----------
    tensors
        In file order.

    Returns
    -------
    tuple of Tensor
        The same, some with the skip reason ``ema_copy``.
    """
    averages: dict[tuple[str, ...], Tensor] = {}
    mangled: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.skip is None and (core := _core_of_average(tensor.name)) is not None:
            averages[core] = tensor
            mangled["".join(core)] = tensor
    if not averages:
        return tuple(tensors)
    marked: dict[str, tuple[SkipReason, str]] = {}
    for tensor in tensors:
        if tensor.skip is not None or _core_of_average(tensor.name) is not None:
            continue
        core = _core(re.split(r"[./]", _bare(tensor.name)))
        copy = averages.get(core)
        if copy is not None and copy.shape == tensor.shape:
            marked[tensor.name] = ("ema_copy", f"{copy.name!r} is taken instead")
            continue
        copy = mangled.get("".join(core))
        if copy is not None and copy.shape == tensor.shape:
            detail = f"copy of {tensor.name!r} under a name without dots"
            marked[copy.name] = ("ema_copy", detail)
    return tuple(replace(t, skip=marked[t.name]) if t.name in marked else t for t in tensors)


def _bare(name: str) -> str:
    return re.sub(r":\d+$", "", name)


def _core_of_average(name: str) -> tuple[str, ...] | None:
    """Return an average's name without what makes it one, else None."""
    parts = re.split(r"[./]", _bare(name))
    for i, part in enumerate(parts[:3]):
        if _AVERAGE.match(part) and i + 1 < len(parts):
            return _core([*parts[:i], *parts[i + 1 :]])
    last = parts[-1]
    if len(parts) > 1 and re.match(r"(shadow|ExponentialMovingAverage(_\d+)?)$", last):
        return _core(parts[:-1])
    ending = re.match(r"(.+?)[_.]ema$", last, re.I)
    return _core([*parts[:-1], ending[1]]) if ending else None


def _core(parts: Sequence[str]) -> tuple[str, ...]:
    """Drop the wrappers a name begins with."""
    start = 0
    while start < len(parts) - 1 and parts[start].lower() in _WRAPPERS:
        start += 1
    return tuple(parts[start:])
