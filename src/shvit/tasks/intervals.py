"""Confidence intervals of averages over classes."""

import numpy as np
from jaxtyping import Int64

from ..confidence import wilson_interval

Confusion = Int64[np.ndarray, "classes classes"]
"""Number of images by true class (row) and predicted class (column)."""
Interval = tuple[float, float]
DRAWS = 400
"""Number of bootstrap samples."""


def balanced_accuracy_interval(confusion: Confusion) -> Interval:
    """The 95 % Wilson interval of the balanced accuracy.

    Its number of trials is that of a share which has the variance of the mean of equally accurate classes.
    """
    images = confusion.sum(axis=1)
    kept = images > 0
    recall = float((confusion.diagonal()[kept] / images[kept]).mean())
    trials = kept.sum() ** 2 / float((1 / images[kept]).sum())
    return wilson_interval(recall * trials, trials)  # pyright: ignore[reportArgumentType]: fractions are fine


def macro_f1_interval(confusion: Confusion) -> Interval:
    """The 95 % percentile interval of the macro F1 over `DRAWS` bootstrap samples of the images."""
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns]
    hits, size, means = rows == columns, len(confusion), []
    for drawn in np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), DRAWS):
        both = np.bincount(rows, drawn, size) + np.bincount(columns, drawn, size)
        right = np.bincount(rows[hits], drawn[hits], size)
        means.append(float((2 * right[both > 0] / both[both > 0]).mean()))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
