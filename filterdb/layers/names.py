"""What a tensor's name says: module and parameter, tokens, and the name its BatchNorm would have.

Only conventions read in real files are listed: torch and its many dialects, Keras and TF-slim,
Chainer (``W``, ``b``, ``avg_mean``), Paddle (``w_0``, ``_mean``), MXNet (``conv0_weight``), flax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

#: Parameter names that hold a layer's weight.
WEIGHT_LEAVES = frozenset(
    {"weight", "weights", "kernel", "w", "w_0", "filter", "filters", "recurrent_kernel"}
    | {"depthwise_kernel", "pointwise_kernel", "depthwise_weights", "pointwise_weights"}
    # What reparametrised weights are stored under, see filterdb.layers.reparametrised.
    | {"depthwise_weight", "recurrent_weights", "weight_v", "weight_orig"}
)
#: Parameter names that hold a layer's bias.
BIAS_LEAVES = frozenset({"bias", "biases", "b", "b_0", "bias_ih", "bias_hh"})
#: BatchNorm's four vectors, by the names frameworks give them.
MEAN_LEAVES = frozenset({"running_mean", "moving_mean", "avg_mean", "_mean", "mean", "w_1"})
VARIANCE_LEAVES = frozenset(
    {"running_var", "moving_variance", "moving_var", "avg_var", "_variance", "var", "w_2"}
)
GAMMA_LEAVES = frozenset({"weight", "gamma", "scale", "w_0"})
BETA_LEAVES = frozenset({"bias", "beta", "offset", "b_0"})
#: Names of what is no parameter.
BUFFER_LEAVES = (
    MEAN_LEAVES
    | VARIANCE_LEAVES
    | {"num_batches_tracked", "n", "avg_n", "step", "global_step", "iterations", "std"}
    | {"anchors", "anchor", "grid", "grid_cell", "mask", "attn_mask", "position_ids"}
    | {"relative_position_index", "inv_freq", "window"}
)
#: Components of reparametrised weights.
REPARAMETRISED_LEAVES = frozenset(
    {"weight_g", "weight_v", "weight_orig", "weight_u", "weight_mask"}
)

_KNOWN = sorted(
    WEIGHT_LEAVES
    | BIAS_LEAVES
    | GAMMA_LEAVES
    | BETA_LEAVES
    | BUFFER_LEAVES
    | REPARAMETRISED_LEAVES,
    key=len,
    reverse=True,
)
_KNOWN_END = re.compile(r"^(?:(.*?)[./_])?(" + "|".join(map(re.escape, _KNOWN)) + r")$", re.I)
_TORCH_END = re.compile(r"^(?:(.*)[./])?([^./]+)$")
_PARAMETRIZATION = re.compile(
    r"^(.*?)\.?parametrizations\.weight\.(original\d?|0\._u|0\._v|0\.[^.]+)$"
)
_PARAMETRIZATION_LEAF = {
    "original0": "weight_g",
    "original1": "weight_v",
    "original": "weight_orig",
    "0._u": "weight_u",
    "0._v": "weight_v",
}
_NUMBER = re.compile(r"(\d+)")
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def split_name(name: str) -> tuple[str, str]:
    """Split a tensor's name into module and parameter.

    Parameters
    ----------
    name
        ``layer1.0.conv1.weight``, ``conv2d/kernel:0``, ``conv0_weight`` …

    Returns
    -------
    tuple of (str, str)
        Module name (may be empty) and parameter name, without TensorFlow's ``:0``.
    """
    # TensorFlow's outputs are numbered, its moving averages called after what they average.
    bare = re.sub(r"(/ExponentialMovingAverage(_\d+)?|(?<=weight)_ema)?(:\d+)?$", "", name)
    special = _PARAMETRIZATION.match(bare)
    if special:
        leaf = _PARAMETRIZATION_LEAF.get(special[2], special[2])
        return special[1], leaf
    bare = re.sub(r"^(params|batch_stats)[./]", "", bare)
    match = _TORCH_END.match(bare)
    prefix, leaf = (match[1] or "", match[2]) if match else ("", bare)
    if leaf.lower() in _KNOWN:
        return prefix, leaf
    # MXNet and hand-written names join module and parameter by an underscore.
    known = _KNOWN_END.match(leaf)
    if known and known[1]:
        return (f"{prefix}{bare[len(prefix)]}{known[1]}" if prefix else known[1]), known[2]
    return prefix, leaf


def tokens(name: str) -> list[str]:
    """Return the words and numbers of a name, lower case.

    Parameters
    ----------
    name
        ``layer1.downsampleConv_2``.

    Returns
    -------
    list of str
        ``["layer", "1", "downsample", "conv", "2"]``.
    """
    return [t.lower() for t in _TOKEN.findall(name)]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which ``layer10`` follows ``layer2``.

    Parameters
    ----------
    name
        Any name.

    Returns
    -------
    tuple
        Comparable with the keys of other names.
    """
    parts = _NUMBER.split(name)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


_FIRST = re.compile(
    r"(^|[._/])(stem|conv_stem|patch_embed\w*|first_conv|conv_first|conv_in|conv_pre|inc)\b"
)
_LAST = re.compile(
    r"^(module\.|model\.)?(head|fc|classifier|conv_head|final\w*|last\w*|output\w*|outc|conv_post|conv_last|conv_out)\b"
)


_SIZED_LETTER = re.compile(r"(?<=[._/])(\w*?)\d+x\d+_([a-d])(?=$|[._/])")


def registration_order(names: Sequence[str], *, ordered: bool | None = None) -> list[int]:
    """Guess the order of construction where a file does not keep it.

    Safetensors writers sort by name, so ``layer10`` precedes ``layer2`` and ``stem`` comes last;
    Chainer's npz files follow a dictionary's hashes. Such a list is sorted naturally, with stems
    first and heads last; any other order is taken as the file gives it.

    Parameters
    ----------
    names
        Module names in file order.
    ordered
        Whether the file keeps the order; asked of the names where None.

    Returns
    -------
    list of int
        Positions into `names`, in the order of construction.
    """
    order = list(range(len(names)))
    if keeps_order(names) if ordered is None else ordered:
        return order

    known = set(names)

    def key(position: int) -> tuple[int, tuple[tuple[int, int, str], ...], int]:
        name = names[position]
        group = 0 if _FIRST.search(name) else 2 if _LAST.search(name) else 1
        # DPN counts by the letter behind the kernel's size; an inverted bottleneck widens first.
        counted = _SIZED_LETTER.sub(r"\1_\2", name)
        if counted.endswith("conv_pw") and f"{name}l" in known:
            counted = f"{counted[:-2]}a"
        return group, natural_key(counted), position

    return sorted(order, key=key)


def keeps_order(names: Sequence[str]) -> bool:
    """Whether the order of a list of names may be the order of construction.

    Parameters
    ----------
    names
        Names in file order.

    Returns
    -------
    bool
        False for four or more names sorted by the alphabet, and where most series of counted
        names jump up and down (``conv2``, ``conv4``, ``conv1``).
    """
    distinct = list(dict.fromkeys(names))
    if len(distinct) < 4:
        return True
    if all(a <= b for a, b in pairwise(distinct)):
        return False
    counted: dict[str, dict[int, None]] = {}
    for name in distinct:
        match = re.match(r"^(.*?)(\d+)([./].*)?$", name)
        if match:
            counted.setdefault(match[1], {})[int(match[2])] = None
    series = [list(numbers) for numbers in counted.values() if len(numbers) > 2]
    # A decoder may count down; what jumps is in no order at all.
    jumping = sum(s != sorted(s) and s != sorted(s, reverse=True) for s in series)
    return 2 * jumping <= len(series)


def last_part(name: str) -> tuple[str, str]:
    """Split a module name into its parent (with separator) and its last component.

    Parameters
    ----------
    name
        ``layer1.0.conv1``.

    Returns
    -------
    tuple of (str, str)
        ``("layer1.0.", "conv1")``.
    """
    cut = max(name.rfind("."), name.rfind("/")) + 1
    return name[:cut], name[cut:]


_CONV_WORD = re.compile(
    r"(depthwise_?conv|pointwise_?conv|sep_?conv|deconv|conv)(_?\dd)?(transpose)?", re.I
)
_BN_WORDS = ("bn", "batch_norm", "batchnorm", "norm", "batch_normalization", "bnorm")


def batch_norm_names(conv: str) -> list[str]:
    """List the names the BatchNorm behind a convolution goes by, most telling first.

    Parameters
    ----------
    conv
        The convolution's module name.

    Returns
    -------
    list of str
        Lower-case names; those found by counting (``N`` → ``N+1``) are included.
    """
    parent, last = last_part(conv)
    names: list[str] = []
    inside: list[str] = []
    for match in _CONV_WORD.finditer(last):
        before, after = last[: match.start()], last[match.end() :]
        dimension = match[2] or ""
        names += [f"{before}{word}{after}" for word in _BN_WORDS]
        names += [f"{before}{word}{dimension}{after}" for word in _BN_WORDS if dimension]
    if last.isdigit():
        names.append(str(int(last) + 1))
        lists = re.sub(r"(?i)convs(?=[./]$)", "bns", parent)
        inside = [f"{lists}{last}"] if lists != parent else []
    names += [f"{last}_bn", f"{last}bn", f"bn_{last}", f"{last}_batch_norm", f"{last}_batchnorm"]
    inside += [f"{conv}{separator}{word}" for separator in "./" for word in (*_BN_WORDS, "bn1")]
    return [f"{parent}{n}".lower() for n in names] + [n.lower() for n in inside]
