"""Numbers of others that stand in the report, with where they come from."""

from __future__ import annotations

#: Global PCA of CNN Filter DB v1.0.0 (3×3, per-filter scaled, weighted by filter); read from the
#: 105 GB file by a third party.
EVR: tuple[float, ...] = (
    0.39815034,
    0.18326029,
    0.11703953,
    0.09852558,
    0.06576389,
    0.05521558,
    0.03007510,
    0.02823360,
    0.02373609,
)

#: Median, mean and largest drift D between tasks in CNN Filter DB v1.0.0, read from its figure.
TASK_DRIFT: tuple[float, float, float] = (0.11, 0.17, 0.70)

#: Where they were published.
SOURCE = (
    "Gavrikov and Keuper, “CNN Filter DB: An Empirical Investigation of Trained Convolutional "
    "Filters”, CVPR 2022, arXiv 2203.15331"
)
