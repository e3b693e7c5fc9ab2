"""Find probable label errors: out-of-fold class probabilities of a linear probe, ranked by confident learning.

Source of the ranking: C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset
Labels", 2021.
"""

from dataclasses import dataclass
from typing import NamedTuple

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
CHUNK = 8192


@dataclass(frozen=True)
class Judgement:
    """What a linear probe says about each image that it was not fitted on."""

    probabilities: Float32[np.ndarray, "n classes"]
    distances: Float32[np.ndarray, " n"]
    """Squared Mahalanobis distance to the nearest class."""


@dataclass(frozen=True)
class Suspects:
    """Images whose label is probably wrong, the most suspicious first."""

    indices: Int64[np.ndarray, " m"]
    suggested: Int64[np.ndarray, " m"]
    """The class that the image probably shows."""
    probabilities: Float32[np.ndarray, " m"]
    """Probability of the suggested class."""
    scores: Float32[np.ndarray, " m"]
    """Probability of the suggested class minus probability of the given class."""

    def only(self, chosen: Bool[np.ndarray, " m"]) -> "Suspects":
        """The chosen ones of these images."""
        return Suspects(self.indices[chosen], self.suggested[chosen], self.probabilities[chosen], self.scores[chosen])


def assign_folds(
    labels: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"], folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """Assign images to folds at random. Classes are spread evenly, and the images of a group share a fold."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(first)), labels[first]))
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % folds
    return fold[member]


def judge_labels(
    features: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"], folds: Int64[np.ndarray, " n"], classes: int
) -> Judgement:
    """Fit a linear probe to all folds but one, apply it to that fold, and repeat this for each fold.

    The probe is linear discriminant analysis of standardized features of unit length: Gaussian classes that share a
    covariance, which is shrunk towards a multiple of the identity. The probe has a closed form, and its sums over all
    folds but one are differences of sums, so that all fits together take little more time than one. Shrinkage and
    scale of the logits are those with the lowest cross-entropy.
    """
    x, y = _standardized(features), torch.from_numpy(labels)
    parts = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    moments = [_Moments.of(x[part], y[part], classes) for part in parts]
    total = _Moments(*(sum(column) for column in zip(*moments, strict=True)))  # pyright: ignore[reportArgumentType]

    def applied(shrinkage: float, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits and distances of the chosen images."""
        place = np.cumsum(chosen) - 1
        logits, distances = torch.empty(chosen.sum(), classes), torch.empty(chosen.sum())
        for part, left_out in zip(parts, moments, strict=True):
            fitted = _Discriminant.of(total.without(left_out), shrinkage)
            rows = part[chosen[part]]
            for chunk in np.array_split(rows, 1 + len(rows) // CHUNK):
                logits[place[chunk]], distances[place[chunk]] = fitted(x[chunk])
        return logits, distances

    sample = np.zeros(len(labels), bool)
    sample[np.random.default_rng(0).permutation(len(labels))[:CALIBRATED]] = True
    trials = []
    for shrinkage in SHRINKAGES:
        logits, _ = applied(shrinkage, sample)
        trials += [(float(F.cross_entropy(scale * logits, y[sample])), shrinkage, scale) for scale in SCALES]
    _, shrinkage, scale = min(trials)
    logits, distances = applied(shrinkage, np.ones(len(labels), bool))
    return Judgement((scale * logits).softmax(1).numpy(), distances.numpy())


def find_suspects(probabilities: Float32[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]) -> Suspects:
    """Choose and rank the images whose label is probably wrong.

    An image is suspicious if the most probable of the classes that reach their threshold is not its label. The
    threshold of a class is the mean probability that the images with this label have for it.
    """
    rows = np.arange(len(labels))
    given = probabilities[rows, labels]
    images = np.bincount(labels, minlength=probabilities.shape[1])
    thresholds = np.where(images, np.bincount(labels, given, len(images)) / np.maximum(images, 1), np.inf)
    best = np.concatenate([_best(chunk, thresholds) for chunk in np.array_split(probabilities, 1 + len(rows) // CHUNK)])
    scores = probabilities[rows, best] - given
    reaches = (probabilities[rows, best] >= thresholds[best]) & (best != labels)
    indices = np.flatnonzero(reaches)
    indices = indices[np.argsort(-scores[indices], kind="stable")]
    return Suspects(indices, best[indices], probabilities[indices, best[indices]], scores[indices])


def _best(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """For each image, the most probable of the classes that reach their threshold."""
    return np.where(probabilities >= thresholds, probabilities, -1).argmax(1)


def _standardized(features: Float32[np.ndarray, "n d"]) -> Float[Tensor, "n d"]:
    """Each feature with mean 0 and variance 1, then each image's features with the length that this gives on average."""
    x = torch.from_numpy(features)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    return F.normalize(x).mul_(x.shape[1] ** 0.5)


class _Moments(NamedTuple):
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
        for part, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            sums.index_add_(0, labels, part.double())
            scatter += part.double().T @ part.double()
        return cls(scatter, sums, torch.bincount(y, minlength=classes).double())

    def without(self, other: "_Moments") -> "_Moments":
        """The sums over the images that are not among the others."""
        return _Moments(*(mine - others for mine, others in zip(self, other, strict=True)))


@dataclass(frozen=True)
class _Discriminant:
    """Linear discriminant analysis: the log probability of each class, up to a constant of the image."""

    factor: Float[Tensor, "d d"]
    """Cholesky factor of the covariance."""
    weights: Float[Tensor, "d classes"]
    offsets: Float[Tensor, " classes"]
    log_priors: Float[Tensor, " classes"]
    """Minus infinity for a class without images."""

    @classmethod
    def of(cls, moments: _Moments, shrinkage: float) -> "_Discriminant":
        images = moments.images.clamp_min(1)[:, None]
        means = moments.sums / images
        within = moments.scatter - means.T @ moments.sums
        within.mul_((1 - shrinkage) / within.diagonal().sum())
        within.diagonal().add_(shrinkage / len(within))
        within *= len(within)  # a mean variance of 1
        factor = torch.linalg.cholesky(within)
        weights = torch.cholesky_solve(means.T, factor)
        priors = (moments.images / moments.images.sum()).log()
        offsets = -0.5 * (means.T * weights).sum(0)
        return cls(factor.float(), weights.float(), offsets.float(), priors.float())

    def __call__(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, " n"]]:
        """Logits, and the squared Mahalanobis distance to the nearest class."""
        linear = x @ self.weights + self.offsets
        length = torch.linalg.solve_triangular(self.factor, x.T, upper=False).square().sum(0)
        return linear + self.log_priors, length - 2 * linear.where(self.log_priors.isfinite(), -torch.inf).amax(1)
