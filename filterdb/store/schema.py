"""Every table and column of a store, declared once.

FORMAT.md is checked against this file, the writer validates against it, and the report's
columns.md is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

FORMAT_NAME = "filterdb-store"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column.

    Parameters
    ----------
    name
        As in the file.
    type
        Arrow type.
    nullable
        Whether a null may stand there.
    text
        What it means, with unit and range.
    """

    name: str
    type: Any
    nullable: bool
    text: str


@dataclass(frozen=True)
class TableSchema:
    """One table: its columns in order, and the columns rows are sorted by or found by.

    Parameters
    ----------
    name
        Table and file name.
    text
        What one row is.
    columns
        In file order.
    key
        Columns whose values identify a row.
    """

    name: str
    text: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]

    @property
    def arrow(self) -> Any:
        """The Arrow schema."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])


_S, _I8, _I16, _I32, _I64 = pa.string(), pa.int8(), pa.int16(), pa.int32(), pa.int64()
_F, _B = pa.float64(), pa.bool_()
_LS = pa.list_(pa.field("item", _S, nullable=False))
_LI32 = pa.list_(pa.field("item", _I32, nullable=False))
_LI64 = pa.list_(pa.field("item", _I64, nullable=False))
_LF = pa.list_(pa.field("item", _F, nullable=False))


def _c(name: str, type_: Any, text: str, *, null: bool = False) -> Column:
    return Column(name, type_, null, text)


MODELS = TableSchema(
    "models",
    "one model whose file was read",
    (
        _c("model_id", _S, "slug of the catalogue entry"),
        _c("catalogue", _S, "catalogue it stands in"),
        _c("uri", _S, "source URI"),
        _c("format", _S, "reader that read it"),
        _c("archive_sha256", _S, "hash of the archive around it", null=True),
        _c("member_sha256", _S, "hash of the file; with companions, of their sorted list"),
        _c("bytes", _I64, "size of file and companions, bytes"),
        _c("name", _S, "name for people"),
        _c("architecture", _S, "architecture"),
        _c("family", _S, "family of architectures or of packages"),
        _c("task", _S, "closed vocabulary"),
        _c("visual_category", _S, "closed vocabulary"),
        _c("training_dataset", _LS, "data sets it was trained on"),
        _c("pretraining_dataset", _LS, "data sets it was pretrained on"),
        _c("licence_package", _S, "SPDX of the package"),
        _c("licence_weights", _S, "SPDX of the weights, NOASSERTION where nobody says"),
        _c("paper", _S, "reference", null=True),
        _c("note", _S, "remark of the catalogue", null=True),
        _c("label_source", _S, "what was read to set the labels"),
        _c("init_of", _S, "architecture it is a random initialisation of", null=True),
        _c("seed", _I64, "seed of that initialisation", null=True),
        _c("n_parameters", _I64, "parameters of the network"),
        _c("n_conv_layers", _I32, "convolutions, every use counted"),
        _c("n_filters", _I64, "kernel slices of all convolutions, shared weights once"),
        _c("n_filters_3x3", _I64, "those of 3x3"),
        _c("n_skipped", _I32, "rows in skipped"),
        _c("status", _S, "ok or no_convolutions"),
    ),
    ("model_id",),
)

LAYERS = TableSchema(
    "layers",
    "one use of one convolution",
    (
        _c("layer_uid", _S, "model_id/tensor[#use]"),
        _c("model_id", _S, "model"),
        _c("layer_index", _I32, "position in the model, file order, from 0"),
        _c("name", _S, "module or node name"),
        _c("op", _S, "conv or conv_transpose"),
        _c("rank", _I8, "spatial axes, 1 to 3"),
        _c("kernel", _S, 'extent, "3x3"'),
        _c("kd", _I32, "kernel depth", null=True),
        _c("kh", _I32, "kernel height", null=True),
        _c("kw", _I32, "kernel width"),
        _c("in_channels", _I32, "all groups together"),
        _c("out_channels", _I32, "all groups together"),
        _c("groups", _I32, "channel groups"),
        _c("stride", _LI32, "per spatial axis", null=True),
        _c("dilation", _LI32, "per spatial axis", null=True),
        _c("padding", _LI32, "per axis, or begins then ends", null=True),
        _c(
            "role",
            _S,
            "stem, patch_embed, spatial, depthwise, pointwise, downsample, fc_as_conv, head",
        ),
        _c("conv_depth", _I32, "rank of its depth among levels that hold a convolution", null=True),
        _c("conv_depth_norm", _F, "conv_depth / (levels - 1), 0 to 1", null=True),
        _c("depth_decile", _I8, "min(9, floor(10 conv_depth_norm))", null=True),
        _c("depth_source", _S, "graph or registration"),
        _c("bn", _S, "BatchNorm behind it: none, separate, folded_in_file, unknown"),
        _c("n_filters", _I64, "kernel slices, out_channels in_channels / groups"),
        _c("source_dtype", _S, "element type in the file"),
        _c("stored_dtype", _S, "element type in the shard; null where not stored", null=True),
        _c("quantised", _B, "integers multiplied by the file's scales"),
        _c("shard", _I32, "number NNNNN of filters/NNNNN.h5; null where not stored", null=True),
        _c("dataset", _S, 'data set in the shard, "2d/3x3/float32"', null=True),
        _c("start", _I64, "first row, half-open", null=True),
        _c("stop", _I64, "one past the last row", null=True),
        _c("tensor_sha256", _S, "hash of the canonical weights' bytes, shape and dtype"),
        _c("shared_with", _S, "layer_uid in this model whose filters these are", null=True),
        _c(
            "duplicate_of",
            _S,
            "first layer_uid of an earlier model with equal tensor_sha256",
            null=True,
        ),
    ),
    ("layer_uid",),
)

LAYER_STATES = TableSchema(
    "layer_states",
    "mergeable sums of one layer's filters, raw or with BatchNorm folded in",
    (
        _c("layer_uid", _S, "layer"),
        _c("weights", _S, "raw or folded"),
        _c("n", _I64, "filters"),
        _c("n_zero", _I64, "filters that are all zero"),
        _c("n_nonfinite", _I64, "filters with a NaN or infinity"),
        _c("absmax", _F, "largest |w|", null=True),
        _c("mean", _F, "mean coefficient", null=True),
        _c("m2", _F, "sum of squared deviations from the mean", null=True),
        _c("m3", _F, "sum of cubed deviations", null=True),
        _c("m4", _F, "sum of fourth powers of deviations", null=True),
        _c("sum", _LF, "k2 sums of raw filters", null=True),
        _c("scatter", _LF, "uncentred outer products, upper triangle row-major", null=True),
        _c("scaled_sum", _LF, "the same of filters divided by their own largest |w|", null=True),
        _c("scaled_scatter", _LF, "the same of scaled filters", null=True),
        _c("n_sparse_001", _I64, "filters with all |w| < .001 absmax", null=True),
        _c("n_sparse_01", _I64, "filters with all |w| < .01 absmax", null=True),
        _c("n_sparse_1", _I64, "filters with all |w| < .1 absmax", null=True),
        _c("sparse_sum", _LF, "sum over the filters sparse at .01", null=True),
        _c("sparse_scatter", _LF, "scatter over the filters sparse at .01", null=True),
        _c("sparse_scaled_sum", _LF, "scaled_sum over the filters sparse at .01", null=True),
        _c(
            "sparse_scaled_scatter", _LF, "scaled_scatter over the filters sparse at .01", null=True
        ),
        _c("orthogonality", _F, "O of filter_metrics.md section 3", null=True),
        _c("l_orth", _F, "convolutional orthogonality L, stride 1 where unknown", null=True),
        _c("null_reason", _S, "why something above is null", null=True),
    ),
    ("layer_uid", "weights"),
)

QUALITY = TableSchema(
    "quality",
    "layer quality, one row per layer, weights and treatment of sparse filters",
    (
        _c("layer_uid", _S, "layer"),
        _c("weights", _S, "raw or folded"),
        _c("sparse", _S, "kept or removed"),
        _c("sparsity", _F, "share of filters with all |w| < .01 absmax", null=True),
        _c("entropy", _F, "variance entropy H, log10", null=True),
        _c("entropy_norm", _F, "H / log10 k2, 0 to 1", null=True),
        _c("t_h_ratio", _F, "H / T_H(n), 3x3 only", null=True),
        _c("p_random", _F, "p-value of H under i.i.d. Gaussian filters", null=True),
        _c("effect_random", _F, "entropy deficit 1 - H / E[H of Gaussian filters]", null=True),
        _c("orthogonality", _F, "O", null=True),
        _c("findings", _LS, "named findings"),
        _c("null_reason", _S, "why something above is null", null=True),
    ),
    ("layer_uid", "weights", "sparse"),
)

FINDINGS = TableSchema(
    "findings",
    "one named finding of one layer",
    (
        _c("layer_uid", _S, "layer"),
        _c("weights", _S, "raw or folded"),
        _c("finding", _S, "name"),
        _c("severity", _S, "defect, unusual or note"),
        _c("statistic", _F, "value that crossed the threshold", null=True),
        _c("threshold", _F, "the threshold", null=True),
        _c("p_value", _F, "p-value, adjusted over the layers of the model", null=True),
        _c("effect", _F, "effect size", null=True),
        _c("detail", _S, "one sentence"),
    ),
    ("layer_uid", "weights", "finding"),
)

SKIPPED = TableSchema(
    "skipped",
    "one tensor that was not taken",
    (
        _c("model_id", _S, "model"),
        _c("tensor", _S, "name in the file"),
        _c("shape", _LI64, "shape in the file"),
        _c("dtype", _S, "element type in the file"),
        _c("reason", _S, "closed set of reasons"),
        _c("detail", _S, "what was seen"),
    ),
    ("model_id", "tensor"),
)

FAILURES = TableSchema(
    "failures",
    "one model that could not be read",
    (
        _c("model_id", _S, "model"),
        _c("uri", _S, "source URI"),
        _c("stage", _S, "fetch, hash, open, parse, layers, state or write"),
        _c("error", _S, "class of the error"),
        _c("message", _S, "its message"),
        _c("retryable", _B, "the next run tries again by itself"),
        _c("attempts", _I32, "runs that tried"),
    ),
    ("model_id",),
)

RESULTS = TableSchema(
    "results",
    "one number of one analysis",
    (
        _c("analysis", _S, "pca, shift, quality …"),
        _c("version", _S, "version of the analysis"),
        _c("fingerprint", _S, "hash of name, version, parameters and data"),
        _c("axis", _S, "grouping column or SQL expression"),
        _c("group_a", _S, "group"),
        _c("group_b", _S, "the group compared with; * is all others", null=True),
        _c("kernel", _S, "kernel"),
        _c("component", _I16, "principal component from 1", null=True),
        _c("metric", _S, "evr, drift, jensen_shannon, frechet, …"),
        _c("value", _F, "estimate", null=True),
        _c("low", _F, "lower end of the 95 % interval", null=True),
        _c("high", _F, "upper end", null=True),
        _c("noise_floor", _F, "mean under permutation of models", null=True),
        _c("p_value", _F, "permutation p-value", null=True),
        _c("q_value", _F, "Benjamini-Hochberg adjusted within axis and metric", null=True),
        _c("n_models", _I64, "models in group_a (and group_b)"),
        _c("n_models_b", _I64, "models in group_b", null=True),
        _c("n_filters", _I64, "filters in both groups"),
        _c("weighting", _S, "filter or model"),
        _c("weights", _S, "raw or folded"),
        _c("scaling", _S, "none, max_abs, l2 or layer_std"),
        _c("sparse", _S, "kept or removed"),
        _c("null_reason", _S, "why something above is null", null=True),
    ),
    ("fingerprint", "axis", "group_a", "group_b", "kernel", "component", "metric"),
)

BASES = TableSchema(
    "bases",
    "one PCA basis",
    (
        _c("analysis", _S, "pca"),
        _c("version", _S, "version of the analysis"),
        _c("fingerprint", _S, "hash of name, version, parameters and data"),
        _c("axis", _S, "grouping; * is all"),
        _c("group", _S, "group; * is all"),
        _c("kernel", _S, "kernel"),
        _c("mean", _LF, "k2 mean filter"),
        _c("components", _LF, "(k2, k2) row-major, one component a row"),
        _c("eigenvalues", _LF, "k2 variances, descending"),
        _c("evr", _LF, "explained variance ratio"),
        _c("n_models", _I64, "models"),
        _c("n_filters", _I64, "filters"),
        _c("weighting", _S, "filter or model"),
        _c("weights", _S, "raw or folded"),
        _c("scaling", _S, "none, max_abs, l2 or layer_std"),
        _c("sparse", _S, "kept or removed"),
    ),
    ("fingerprint", "axis", "group", "kernel"),
)

HISTOGRAMS = TableSchema(
    "histograms",
    "coefficients of one group along one component, the bins of D",
    (
        _c("analysis", _S, "shift"),
        _c("version", _S, "version of the analysis"),
        _c("fingerprint", _S, "hash of name, version, parameters and data"),
        _c("axis", _S, "grouping; * is all"),
        _c("group", _S, "group; * is all"),
        _c("kernel", _S, "kernel"),
        _c("component", _I16, "principal component from 1"),
        _c("low", _F, "left edge of the first bin"),
        _c("high", _F, "right edge of the last bin"),
        _c("mass", _LF, "share per bin, sums to 1"),
        _c("n_models", _I64, "models"),
        _c("n_filters", _I64, "filters"),
    ),
    ("fingerprint", "axis", "group", "kernel", "component"),
)

MANIFEST = TableSchema(
    "manifest",
    "one file of the store",
    (
        _c("path", _S, "relative to the store, / separated"),
        _c("kind", _S, "filters or table"),
        _c("rows", _I64, "rows (filters: filters)"),
        _c("bytes", _I64, "file size"),
        _c("sha256", _S, "hash of the file"),
        _c("generation", _I32, "commit that wrote it"),
    ),
    ("path",),
)

#: Tables a reader sees, by name; the manifest stands apart, since it names the others.
TABLES: dict[str, TableSchema] = {
    t.name: t
    for t in (
        MODELS,
        LAYERS,
        LAYER_STATES,
        SKIPPED,
        FAILURES,
        QUALITY,
        FINDINGS,
        RESULTS,
        BASES,
        HISTOGRAMS,
    )
}
