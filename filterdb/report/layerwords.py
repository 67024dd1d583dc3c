"""Words and small pictures of one layer, the same on every page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from filterdb.report.numbers import NONE, plural, share, short, words
from filterdb.report.pictures import filter_sheet, sample_filters

if TYPE_CHECKING:
    from filterdb.report.corpus import Corpus

_LONGEST_NAME = 60


def shorten(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name cut in the middle where it is too long to read.

    Parameters
    ----------
    name
        Of a layer or model.
    longest
        Characters.

    Returns
    -------
    str
        Its two ends with an ellipsis between.
    """
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def kernel_words(kernel: str) -> str:
    """Return "3×3" for "3x3".

    Parameters
    ----------
    kernel
        As in the store.

    Returns
    -------
    str
        With multiplication signs.
    """
    return kernel.replace("x", "×")


def kernel_shape(kernel: str) -> tuple[int, ...]:
    """Return (3, 3) for "3x3".

    Parameters
    ----------
    kernel
        As in the store.

    Returns
    -------
    tuple of int
        Slowest axis first.
    """
    return tuple(int(k) for k in kernel.split("x"))


def group_words(axis: str, group: str) -> str:
    """Return the name of a group as people write it.

    Parameters
    ----------
    axis
        Grouping.
    group
        Label as in `results`.

    Returns
    -------
    str
        "depth 0.1–0.2" for the second depth decile, else the label without underscores.
    """
    if axis == "depth_decile" and group.isdigit():
        return f"depth {int(group) / 10:.1f}–{(int(group) + 1) / 10:.1f}"
    return words(group)


def finding_sentence(row: dict[str, Any]) -> str:
    """Return a finding as one sentence.

    Parameters
    ----------
    row
        Of `findings`, with name, model_name and n_filters of its layer.

    Returns
    -------
    str
        What, how much of how many.
    """
    who = f"{shorten(str(row['name']))} of {shorten(str(row['model_name']))}"
    detail = str(row["detail"]).rstrip(".")
    return f"{who}: {words(str(row['finding']))}: {detail}."


def quality_words(metric: str, value: float | None) -> str:
    """Return a metric's value as people write it.

    Parameters
    ----------
    metric
        sparsity, entropy_norm or orthogonality.
    value
        0 to 1, or None.

    Returns
    -------
    str
        Per cent for sparsity, else a number.
    """
    if value is None or value != value:
        return NONE
    return share(value, 3) if metric == "sparsity" else short(value)


def small_sheet(corpus: Corpus, layer_uid: str) -> str | None:
    """Return a picture of sixteen filters of a layer as a data address.

    Parameters
    ----------
    corpus
        The store.
    layer_uid
        Layer.

    Returns
    -------
    str or None
        None where no filters are stored.
    """
    row = corpus.layer_rows.get(layer_uid)
    if row is None or row["dataset"] is None or row["shard"] != row["shard"]:
        return None
    kernel = kernel_shape(row["kernel"])
    if len(kernel) > 2 or max(kernel) > 16:
        return None
    sample = sample_filters(corpus.filters_of(row), count=16)
    columns = 4 if len(sample.values) > 4 else len(sample.values)
    return filter_sheet(sample.values, kernel, limit=sample.limit, columns=columns).data_uri


def layer_shape(row: dict[str, Any]) -> str:
    """Return what a layer is, in one line.

    Parameters
    ----------
    row
        Of `layers`.

    Returns
    -------
    str
        "64 × 32 × 3 × 3 · stride 2 · groups 1 · …".
    """
    per_group = int(row["in_channels"]) // max(1, int(row["groups"]))
    dims = [row["out_channels"], per_group, *kernel_shape(row["kernel"])]
    parts = [" × ".join(str(int(d)) for d in dims)]
    if row["op"] == "conv_transpose":
        parts.append("transposed")
    for key, label in (("stride", "stride"), ("dilation", "dilation")):
        axes = row.get(key)
        if axes is not None and (key == "stride" or any(int(a) != 1 for a in axes)):
            distinct = sorted({int(a) for a in axes})
            text = str(distinct[0]) if len(distinct) == 1 else "×".join(str(int(a)) for a in axes)
            parts.append(f"{label} {text}")
    if int(row["groups"]) > 1:
        parts.append(plural(int(row["groups"]), "group"))
    parts.append(words(str(row["role"])))
    parts.append(f"BatchNorm: {words(str(row['bn']))}")
    if row.get("quantised"):
        parts.append("quantised")
    parts.append(str(row["source_dtype"]))
    return " · ".join(parts)
