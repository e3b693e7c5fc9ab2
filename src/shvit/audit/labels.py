"""Find probable label errors: out-of-fold class probabilities of a linear probe, ranked by confident learning.

Source of the ranking: C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset
Labels", 2021.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

SHRINKAGES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Candidates for the share of the covariance that is replaced by a multiple of the identity."""
SCALES = tuple(float(value) for value in np.logspace(-2, 0.5, 51))
"""Candidates for the factor that scales the logits of the probe."""
CALIBRATED = 10_000
"""Maximum number of images on which the candidates are compared."""
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Suspects:
    """Images whose label is probably wrong, the most suspicious first."""

    indices: Int64[np.ndarray, " m"]
    suggested: Int64[np.ndarray, " m"]
    """The most probable class."""
    probabilities: Float32[np.ndarray, " m"]
    """Probability of the suggested class."""
    given: Float32[np.ndarray, " m"]
    """Probability of the class that is the label."""

    def only(self, chosen: Bool[np.ndarray, " m"]) -> "Suspects":
        """The chosen ones of these images."""
        return Suspects(self.indices[chosen], self.suggested[chosen], self.probabilities[chosen], self.given[chosen])


def assign_folds(
    labels: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"], folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """Assign images to folds at random. Classes are spread evenly, and the images of a group share a fold."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(first)), labels[first]))
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % folds
    return fold[member]


def out_of_fold(
    features: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], folds: Int64[np.ndarray, " n"], classes: int
) -> Float32[np.ndarray, "n classes"]:
    """Class probabilities of each image, by a linear probe that was fitted to the other folds.

    The probe is linear discriminant analysis of standardized features of equal length: Gaussian classes that share a
    covariance, which is shrunk towards a multiple of the identity. The probe has a closed form, and its sums over all
    folds but one are differences of sums, so that all fits together take little more time than one. Shrinkage and
    scale are those with the lowest cross-entropy.
    """
    x, y = _standardized(features), torch.from_numpy(labels)
    parts = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    moments = [_Moments.of(x[part], y[part], classes) for part in parts]
    total = moments[0]
    for part in moments[1:]:
        total += part

    def applied(shrinkage: float, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """The unscaled log likelihoods of the chosen images, and the log priors, which depend on the fold."""
        place = np.cumsum(chosen) - 1
        likelihoods, priors = torch.empty(2, chosen.sum(), classes)
        for part, left_out in zip(parts, moments, strict=True):
            fitted = _Discriminant.of(total - left_out, shrinkage)
            rows = part[chosen[part]]
            likelihoods[place[rows]], priors[place[rows]] = fitted(x[rows]), fitted.log_priors
        return likelihoods, priors

    sample = np.zeros(len(labels), bool)
    sample[np.random.default_rng(0).permutation(len(labels))[:CALIBRATED]] = True
    trials = []
    for shrinkage in SHRINKAGES:
        likelihoods, priors = applied(shrinkage, sample)
        losses = [float(F.cross_entropy(scale * likelihoods + priors, y[sample])) for scale in SCALES]
        trials += zip(losses, [shrinkage] * len(SCALES), SCALES, strict=True)
    _, shrinkage, scale = min(trials)
    likelihoods, priors = applied(shrinkage, np.ones(len(labels), bool))
    return likelihoods.mul_(scale).add_(priors).softmax(1).numpy()


def find_suspects(probabilities: Float32[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]) -> Suspects:
    """Choose and rank the images whose label is probably wrong.

    Images are ranked by the probability of their label: those with the lowest probability come first. The number of
    suspects is that of `estimated_errors`, but the label of a suspect is never the most probable class.
    """
    most_probable = probabilities.argmax(1)
    given = probabilities[np.arange(len(labels)), labels]
    doubtful = np.flatnonzero(most_probable != labels)
    indices = doubtful[np.argsort(given[doubtful], kind="stable")][: round(estimated_errors(probabilities, labels))]
    suggested = most_probable[indices]
    return Suspects(indices, suggested, probabilities[indices, suggested], given[indices])


def estimated_errors(probabilities: Float32[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]) -> float:
    """Estimate the number of wrong labels by the confident joint of Northcutt et al.

    The threshold of a class is the mean probability that the images with this label have for it. An image is counted
    if a class reaches its threshold; it counts as an error if the most probable of these classes is not its label. The
    share of errors among the counted images with a label holds for all images with this label.
    """
    images = np.bincount(labels, minlength=probabilities.shape[1])
    given = probabilities[np.arange(len(labels)), labels]
    thresholds = np.where(images, np.bincount(labels, given, len(images)) / np.maximum(images, 1), np.inf)
    chunks = np.array_split(probabilities, 1 + len(labels) // ROWS_AT_ONCE)
    best = np.concatenate([np.where(chunk >= thresholds, chunk, -1).argmax(1) for chunk in chunks])
    counted = probabilities[np.arange(len(labels)), best] >= thresholds[best]
    wrong = counted & (best != labels)
    counts, errors = (np.bincount(labels[chosen], minlength=len(images)) for chosen in (counted, wrong))
    return float((errors / np.maximum(counts, 1) * images).sum())


def _standardized(features: Float32[np.ndarray, "n d"]) -> Float[Tensor, "n d"]:
    """Features with mean 0 and variance 1, then scaled so that all images have the same length."""
    x = torch.from_numpy(features)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    return F.normalize(x).mul_(x.shape[1] ** 0.5)


@dataclass(frozen=True)
class _Moments:
    """Sums over images."""

    scatter: Float64[Tensor, "d d"]
    """Sum of the outer products of the features."""
    sums: Float64[Tensor, "classes d"]
    """Sum of the features of each class."""
    images: Float64[Tensor, " classes"]

    @classmethod
    def of(cls, x: Float[Tensor, "n d"], y: Int64[Tensor, " n"], classes: int) -> "_Moments":
        sums = torch.zeros(classes, x.shape[1], dtype=torch.float64)
        scatter = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for part, labels in zip(x.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), strict=True):
            sums.index_add_(0, labels, part.double())
            scatter += part.double().T @ part.double()
        return cls(scatter, sums, torch.bincount(y, minlength=classes).double())

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(self.scatter + other.scatter, self.sums + other.sums, self.images + other.images)

    def __sub__(self, other: "_Moments") -> "_Moments":
        return _Moments(self.scatter - other.scatter, self.sums - other.sums, self.images - other.images)


@dataclass(frozen=True)
class _Discriminant:
    """Linear discriminant analysis."""

    weights: Float[Tensor, "d classes"]
    offsets: Float[Tensor, " classes"]
    log_priors: Float[Tensor, " classes"]
    """Minus infinity for a class without images."""

    @classmethod
    def of(cls, moments: _Moments, shrinkage: float) -> "_Discriminant":
        """Fit the analysis, with a covariance that is scaled to a mean variance of 1."""
        means = moments.sums / moments.images.clamp_min(1)[:, None]
        within = moments.scatter - means.T @ moments.sums
        within *= (1 - shrinkage) / within.diagonal().mean()
        within.diagonal().add_(shrinkage)
        weights = torch.cholesky_solve(means.T, torch.linalg.cholesky(within))
        offsets = -0.5 * (means.T * weights).sum(0)
        return cls(weights.float(), offsets.float(), (moments.images / moments.images.sum()).log().float())

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """The log likelihood of each class, up to a constant of the image."""
        return x @ self.weights + self.offsets
