"""Try to read one file of a list, and hold what is found against what the list says of it.

Extraction keeps filters; a survey keeps only counts, so it answers for a thousand files "which of
these can be read, and does the reader see in them what others saw?" without a store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import FetchError, FilterDBError

if TYPE_CHECKING:
    from filterdb.catalog.model import Entry
    from filterdb.layers.model import ConvLayer, ModelLayers
    from filterdb.types import SkipReason

_KERNEL_3X3 = (3, 3)
#: Longer kernels are filter banks (spectrograms, pitch) to some who count.
_LONG = 64

#: What other people's counts leave out → whether a layer is of that kind.
_LEFT_OUT: dict[str, Callable[[ConvLayer], bool]] = {
    "a kernel several layers share is listed once, here at every use": lambda layer: (
        layer.shared_with is not None
    ),
    f"the list leaves out kernels longer than {_LONG}": lambda layer: max(layer.kernel) > _LONG,
    "the list leaves out 1-D layers of one output channel": lambda layer: (
        layer.rank == 1 and layer.out_channels == 1
    ),
}
_COPIES = ("ema_copy", "optimizer_state")
#: And what they count besides → whether a skipped tensor of three or more axes is of that kind.
_COUNTED_TOO: dict[str, Callable[[SkipReason], bool]] = {
    "the list counts copies of kernels too (moving averages, optimizer state)": lambda reason: (
        reason in _COPIES
    ),
    "the list counts other tensors of three or more axes too (buffers, scales, inputs)": (
        lambda reason: reason not in _COPIES
    ),
}


@dataclass(frozen=True)
class SurveyTask:
    """What a worker needs to try one file.

    Parameters
    ----------
    entry
        URI, archive hash, format and layout.
    cache_path
        Cache of fetched files; None for the default one.
    """

    entry: Entry
    cache_path: str | None = None


@dataclass(frozen=True)
class Sighting:
    """What was seen in one file.

    Parameters
    ----------
    uri
        As listed.
    format
        The reader that read it; empty where none did.
    n_layers, n_filters_3x3
        Convolution layers (every use of a kernel is one) and their 3×3 filters.
    n_kernels, n_kernel_filters_3x3
        The same with a kernel that several layers share counted once.
    n_skipped
        Tensors that are no convolution kernels.
    n_nonfinite_layers
        Layers with a weight that is NaN or infinite.
    depth_source
        "graph" or "registration"; empty without layers.
    otherwise
        (words, layers, 3×3 filters) by other ways of counting that lists are known to use.
    error, message
        Why it was not read; empty where it was.
    retryable
        Whether another try may go better.
    """

    uri: str
    format: str = ""
    n_layers: int = 0
    n_filters_3x3: int = 0
    n_kernels: int = 0
    n_kernel_filters_3x3: int = 0
    n_skipped: int = 0
    n_nonfinite_layers: int = 0
    depth_source: str = ""
    otherwise: tuple[tuple[str, int, int], ...] = ()
    error: str = ""
    message: str = ""
    retryable: bool = False

    @property
    def is_read(self) -> bool:
        """Whether the file was opened and every kernel in it loaded."""
        return not self.error


def survey_file(task: SurveyTask) -> Sighting:
    """Fetch a file, find its layers and load every kernel once.

    Parameters
    ----------
    task
        The file.

    Returns
    -------
    Sighting
        Counts, or why there are none.
    """
    uri = task.entry.uri
    try:
        return _look(task)
    except FilterDBError as error:
        return unread(uri, error)
    except Exception as error:  # noqa: BLE001 - one file must not end the survey
        message = f"unforeseen, a fault of filterdb: {' '.join(str(error).split())[:300]}"
        return Sighting(uri, error=type(error).__name__, message=message)


def unread(uri: str, error: FilterDBError) -> Sighting:
    """Return what is known of a file that could not be read.

    Parameters
    ----------
    uri
        As listed.
    error
        Why.

    Returns
    -------
    Sighting
        Its message in one line.
    """
    message = " ".join(error.message.split())[:400]
    retryable = isinstance(error, FetchError)
    return Sighting(uri, error=type(error).__name__, message=message, retryable=retryable)


def _look(task: SurveyTask) -> Sighting:
    from filterdb.layers.detect import find_layers
    from filterdb.sources import Cache, fetch_entry, open_raw

    entry = task.entry
    cache = Cache(None if task.cache_path is None else Path(task.cache_path))
    fetched = fetch_entry(entry, cache)
    try:
        raw = open_raw(fetched, entry.format)
        found = find_layers(raw, layout=entry.layout, transposed=entry.transposed)
        return _counted(entry.uri, raw.format, found)
    finally:
        cache.release(*fetched.objects)


def _counted(uri: str, format_name: str, found: ModelLayers) -> Sighting:
    own = [layer for layer in found.layers if layer.shared_with is None]
    return Sighting(
        uri,
        format=format_name,
        n_layers=len(found.layers),
        n_filters_3x3=_filters_3x3(found.layers),
        n_kernels=len(own),
        n_kernel_filters_3x3=_filters_3x3(own),
        n_skipped=len(found.skipped),
        n_nonfinite_layers=sum(not _is_finite(layer) for layer in own),
        depth_source=found.layers[0].depth_source if found.layers else "",
        otherwise=_otherwise(found),
    )


def _otherwise(found: ModelLayers) -> tuple[tuple[str, int, int], ...]:
    """Count as lists do that share, cut short, leave out or count copies; fewest rules first."""
    besides = {
        rule: [s.shape for s in found.skipped if len(s.shape) > 2 and test(s.reason)]
        for rule, test in _COUNTED_TOO.items()
    }
    counts: dict[tuple[int, int], str] = {}
    for n_rules in range(1, len(_LEFT_OUT) + len(besides) + 1):
        for rules in combinations([*_LEFT_OUT, *besides], n_rules):
            tests = [_LEFT_OUT[rule] for rule in rules if rule in _LEFT_OUT]
            kept = [la for la in found.layers if not any(test(la) for test in tests)]
            more = [shape for rule in rules for shape in besides.get(rule, ())]
            n_3x3 = sum(math.prod(shape[:2]) for shape in more if shape[2:] == _KERNEL_3X3)
            counts.setdefault((len(kept) + len(more), _filters_3x3(kept) + n_3x3), "; ".join(rules))
    counts.pop((len(found.layers), _filters_3x3(found.layers)), None)
    return tuple((words, *pair) for pair, words in counts.items())


def _filters_3x3(layers: Sequence[ConvLayer]) -> int:
    return sum(layer.n_filters for layer in layers if layer.kernel == _KERNEL_3X3)


def _is_finite(layer: ConvLayer) -> bool:
    import numpy as np

    return bool(np.isfinite(layer.weights()).all())
