"""Confidence of classifiers: temperature scaling, calibration error, and the score threshold for a target accuracy.

A score is the softmax probability of the most probable class. It is calibrated if, among images with a score of
0.9, nine of ten are classified correctly.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15
"""Bins of the calibration error, as in Guo et al., 2017."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
STEP = 1e-6
"""Scores are rounded down to multiples of this step, so that a printed threshold selects the same images."""
Z_TWO_SIDED, Z_ONE_SIDED = 1.959964, 1.644854
"""Quantiles of the normal distribution for a 95 % confidence interval, and for a lower bound with 95 % confidence."""
CHUNK = 4096
"""Images whose probabilities are in memory at once."""

Logits = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]
Correct = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Calibration:
    """How to turn the logits of a classifier into probabilities, and when to trust them. The default changes nothing.

    Raises:
        ValueError: A field is out of range.
    """

    temperature: float = 1.0
    """Probabilities are softmax(logits / temperature)."""
    images: int = 0
    """Number of images that the temperature was fitted on; 0 if it was not fitted."""
    ece_before: float | None = None
    """Expected calibration error at temperature 1."""
    ece_after: float | None = None
    """The same at this temperature, measured on the images that it was fitted on."""
    threshold: float | None = None
    """Predictions with a lower score are uncertain. None: there is no threshold."""
    target_accuracy: float | None = None
    """The accuracy that the threshold was chosen for."""
    accuracy: float | None = None
    """Accuracy of the images with at least this score, among the images that the threshold was chosen on."""
    coverage: float | None = None
    """Share of the images with at least this score, among the same images."""

    def __post_init__(self) -> None:
        if not _between(self.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE):
            raise ValueError(f"calibration has an invalid temperature: {self.temperature!r:.60}")
        if type(self.images) is not int or not 0 <= self.images <= 10**10:
            raise ValueError(f"calibration has an invalid images: {self.images!r:.60}")
        for name in ("ece_before", "ece_after", "threshold", "target_accuracy", "accuracy", "coverage"):
            value = getattr(self, name)
            if value is not None and not _between(value, 0, 1):
                raise ValueError(f"calibration has an invalid {name}: {value!r:.60}")

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> "Calibration":
        """Inverse of `to_dict`. Fields of later versions are ignored. Raises ValueError for invalid fields."""
        if not isinstance(data, Mapping):
            raise ValueError(f"calibration must be a dict, got {data!r:.60}")
        return cls(**{each.name: data[each.name] for each in fields(cls) if each.name in data})


def _between(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # false for NaN


UNCALIBRATED = Calibration()


@dataclass(frozen=True)
class Threshold:
    """A score threshold, and the images that it was chosen on."""

    score: float
    covered: int
    """Number of images with at least this score."""
    correct: int
    """Number of covered images that are classified correctly."""
    images: int

    @property
    def accuracy(self) -> float:
        """Accuracy of the covered images."""
        return self.correct / self.covered

    @property
    def coverage(self) -> float:
        """Share of the images that are covered."""
        return self.covered / self.images

    def to_dict(self) -> dict[str, Any]:
        """Threshold, accuracy and coverage with their 95 % confidence intervals."""
        return {
            "threshold": self.score,
            "accuracy": self.accuracy,
            "accuracy_interval": list(wilson_interval(self.correct, self.covered)),
            "coverage": self.coverage,
            "coverage_interval": list(wilson_interval(self.covered, self.images)),
            "images": self.images,
        }


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose score lies in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean score."""
    accuracy: float


def fit_temperature(logits: Logits, labels: Labels) -> float | None:
    """The temperature that minimizes the cross-entropy of softmax(logits / temperature).

    None if the minimum is outside [0.05, 20]: the images are all classified correctly, or no better than by chance. The
    loss is convex in 1 / temperature, so Newton's method, kept inside a shrinking bracket, finds the minimum.

    Source: C. Guo et al., "On calibration of modern neural networks", 2017.
    """
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if not _slope(logits, labels, low)[0] < 0 < _slope(logits, labels, high)[0]:  # also catches NaN
        return None
    inverse = 1.0
    for _ in range(100):
        slope, curvature = _slope(logits, labels, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else low
        before, inverse = inverse, step if low < step < high else (low * high) ** 0.5
        if abs(inverse - before) <= 1e-10 * inverse:
            break
    return 1 / inverse


def fitted_calibration(logits: Logits, labels: Labels) -> Calibration | None:
    """The temperature fitted on these images, and the error before and after. None: see `fit_temperature`."""
    temperature = fit_temperature(logits, labels)
    if temperature is None:
        return None
    before, after = calibration_error(logits, labels), calibration_error(logits, labels, temperature)
    return Calibration(temperature, len(labels), before, after)


def calibration_error(logits: Logits, labels: Labels, temperature: float = 1.0) -> float:
    """`expected_calibration_error` of softmax(logits / temperature)."""
    return expected_calibration_error(*top1_scores(logits, labels, temperature))


def calibration_errors(logits: Logits, labels: Labels, temperature: float) -> dict[str, float]:
    """The calibration error with the temperature (`ece`) and without it (`ece_uncalibrated`), as metrics."""
    temperatures = {"ece": temperature, "ece_uncalibrated": 1.0}
    return {key: calibration_error(logits, labels, each) for key, each in temperatures.items()}


def _slope(logits: Logits, labels: Labels, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean cross-entropy by 1 / temperature."""
    first = second = 0.0
    for start in range(0, len(labels), CHUNK):
        part, true = logits[start : start + CHUNK].astype(np.float64), labels[start : start + CHUNK]
        probabilities = softmax(part, 1 / inverse)
        mean = (probabilities * part).sum(1)
        first += float((mean - part[np.arange(len(true)), true]).sum())
        second += float((probabilities * (part - mean[:, None]) ** 2).sum())
    return first / len(labels), second / len(labels)


def softmax(logits: Logits, temperature: float = 1.0) -> Logits:
    """Probabilities in float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def top1_scores(logits: Logits, labels: Labels, temperature: float = 1.0) -> tuple[Scores, Correct]:
    """The score of each image, and whether its most probable class is the true one."""
    starts = range(0, len(labels), CHUNK)
    best = np.concatenate([softmax(logits[start : start + CHUNK], temperature).max(1) for start in starts])
    return best, logits.argmax(1) == labels


def reliability(scores: Scores, correct: Correct, bins: int = BINS) -> list[ReliabilityBin]:
    """The data of a reliability diagram: bins of equal width. Bins without images are left out."""
    index = np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)
    return [
        ReliabilityBin(
            low=one / bins,
            high=(one + 1) / bins,
            images=int((index == one).sum()),
            confidence=float(scores[index == one].mean()),
            accuracy=float(correct[index == one].mean()),
        )
        for one in np.unique(index).tolist()
    ]


def expected_calibration_error(scores: Scores, correct: Correct, bins: int = BINS) -> float:
    """The mean over all images of the difference between accuracy and mean score of their bin (Guo et al., 2017).

    Never 0 on few images, even if the scores are calibrated: the accuracy of a small bin differs from its mean by
    chance.
    """
    parts = reliability(scores, correct, bins)
    return sum(part.images * abs(part.accuracy - part.confidence) for part in parts) / len(scores)


def accuracy_by_coverage(scores: Scores, correct: Correct) -> list[Threshold]:
    """Accuracy and coverage of every possible threshold, highest threshold first.

    One minus accuracy against coverage is the risk-coverage curve of selective classification.
    """
    scores = np.floor(scores / STEP + 1e-9) * STEP
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], np.cumsum(correct[order])
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # images with equal scores stay together
    return [Threshold(round(float(ranked[end]), 6), int(end) + 1, int(right[end]), len(scores)) for end in ends]


def choose_threshold(scores: Scores, correct: Correct, target: float) -> Threshold | None:
    """The smallest threshold whose accuracy on new images is, with 95 % confidence, at least `target`.

    The lower bound of the accuracy must reach the target, not the accuracy itself. A threshold whose measured
    accuracy just reaches the target misses it on new images about every second time (benchmarks/calibration.py). The
    bound needs images: for 99 %, at least 268, all classified correctly.

    Returns:
        None if no threshold reaches the target.
    """
    reached = [
        each
        for each in accuracy_by_coverage(scores, correct)
        if wilson_interval(each.correct, each.covered, Z_ONE_SIDED)[0] >= target
    ]
    return reached[-1] if reached else None


def wilson_interval(count: int, total: int, z: float = Z_TWO_SIDED) -> tuple[float, float]:
    """Confidence interval of a proportion, 95 % by default. Unlike the normal interval, it holds near 0 and 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if total == 0:
        return 0.0, 1.0
    share, extra = count / total, z * z / total
    center, half = share + extra / 2, z * (share * (1 - share) / total + extra / total / 4) ** 0.5
    return min(share, (center - half) / (1 + extra)), max(share, (center + half) / (1 + extra))  # despite rounding
