"""Temperatures are those of scipy's optimizer, calibration errors those of a loop, thresholds keep their promise."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest

from shvit.confidence import (
    UNCALIBRATED,
    Calibration,
    accuracy_by_coverage,
    calibration_error,
    choose_threshold,
    expected_calibration_error,
    fit_temperature,
    fitted_calibration,
    reliability,
    top1_scores,
    wilson_interval,
)


def outputs(temperature: float = 1.0, images: int = 2000, classes: int = 5, seed: int = 0):
    """Logits that are calibrated at this temperature, and labels drawn from their probabilities."""
    random = np.random.default_rng(seed)
    exact = random.normal(0, 2, (images, classes))
    labels = (exact + random.gumbel(size=exact.shape)).argmax(1)  # the Gumbel trick samples from softmax
    return (temperature * exact).astype(np.float32), labels


def scored(images: int, seed: int, wrong: float = 0.0):
    """Calibrated scores, of which a share of the correct images became wrong."""
    random = np.random.default_rng(seed)
    scores = random.beta(3, 0.6, images)
    return scores, random.random(images) < scores * (1 - wrong)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_is_the_minimum_that_scipy_finds(temperature):
    logits, labels = outputs(temperature)

    def loss(log: float) -> float:
        return -log_softmax(logits.astype(np.float64) / np.exp(log), axis=1)[np.arange(len(labels)), labels].mean()

    expected = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x)
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(temperature, rel=0.1)


def test_the_temperature_does_not_depend_on_shifts_and_chunks(monkeypatch):
    logits, labels = outputs(2.0, images=300)
    expected = fit_temperature(logits, labels)
    monkeypatch.setattr("shvit.confidence.CHUNK", 7)
    assert fit_temperature(logits + np.float32(1000), labels) == pytest.approx(expected, rel=1e-3)
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.eye(3), [0, 1, 2]),  # all are correct: the loss falls for ever
        (np.eye(3), [1, 2, 0]),  # all are wrong
        (np.zeros((3, 3)), [0, 1, 2]),
        (np.full((3, 3), np.nan), [0, 1, 2]),
        (np.array([[np.inf, 0.0], [0.0, 1.0]]), [0, 0]),
        (np.zeros((4, 1)), [0, 0, 0, 0]),  # a single class
        (100 * np.eye(3)[[0, 0, 1, 2]], [0, 0, 1, 0]),  # needs a temperature above 20
    ],
    ids=["correct", "wrong", "equal", "nan", "infinite", "one class", "beyond the bound"],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_temperature_that_cannot_be_fitted_is_none(logits, labels):
    assert fit_temperature(np.asarray(logits, np.float32), np.array(labels)) is None
    assert fitted_calibration(np.asarray(logits, np.float32), np.array(labels)) is None


def test_calibration_lowers_the_error_and_says_so():
    logits, labels = outputs(0.5, images=5000)
    found = fitted_calibration(logits, labels)
    assert found.images == 5000
    assert found.temperature == pytest.approx(0.5, rel=0.1)
    assert found.ece_before > 0.08
    assert found.ece_after < 0.03
    assert found.ece_before == calibration_error(logits, labels)
    assert found.ece_after == calibration_error(logits, labels, found.temperature)


def test_the_calibration_error_is_that_of_a_loop():
    scores, correct = scored(500, 1)
    scores[:3] = 1.0, 1 / 15, 0.6  # the upper edge belongs to the bin
    error = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        within = [place for place, score in enumerate(scores) if low < score <= high]
        if within:
            accuracy = sum(correct[place] for place in within) / len(within)
            error += len(within) / len(scores) * abs(accuracy - sum(scores[place] for place in within) / len(within))
    assert expected_calibration_error(scores, correct) == pytest.approx(error, rel=1e-12)


def test_reliability_bins():
    scores, correct = np.array([0.05, 0.5, 0.55, 1.0]), np.array([False, True, False, True])
    parts = reliability(scores, correct, bins=2)
    assert [(part.low, part.high, part.images) for part in parts] == [(0, 0.5, 2), (0.5, 1, 2)]
    assert [(part.confidence, part.accuracy) for part in parts] == [
        (pytest.approx(0.275), 0.5),
        (pytest.approx(0.775), 0.5),
    ]
    assert expected_calibration_error(scores, correct, bins=2) == pytest.approx(0.25)
    assert len(reliability(*scored(100, 0)[:2], bins=1)) == 1


def test_scores_are_the_softmax_of_the_best_class():
    logits, labels = outputs(images=50)
    scores, correct = top1_scores(logits, labels, 2.0)
    assert scores == pytest.approx(np.exp(log_softmax(logits / 2, axis=1)).max(1), rel=1e-5)
    assert correct.tolist() == [int(row.argmax()) == label for row, label in zip(logits, labels, strict=True)]


def test_accuracy_by_coverage_keeps_equal_scores_together():
    scores, correct = np.array([0.9, 0.5, 0.9, 0.2]), np.array([True, True, False, False])
    rows = [(each.score, each.covered, each.correct, each.images) for each in accuracy_by_coverage(scores, correct)]
    assert rows == [(0.9, 2, 1, 4), (0.5, 3, 2, 4), (0.2, 4, 2, 4)]


def test_a_threshold_selects_the_images_that_it_counts():
    scores, correct = scored(3000, 5)
    for each in accuracy_by_coverage(scores, correct)[::100]:
        assert each.covered == int((scores >= each.score).sum())
        assert each.correct == int(correct[scores >= each.score].sum())
    chosen = choose_threshold(scores, correct, 0.95)
    assert chosen.score == round(chosen.score, 6)
    lower = [each for each in accuracy_by_coverage(scores, correct) if each.score < chosen.score]
    assert all(wilson_interval(each.correct, each.covered, 1.644854)[0] < 0.95 for each in lower)


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (5, 5), (3, 7), (985, 1000), (1, 1)])
def test_intervals_are_those_of_scipy(correct, total):
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson_interval(0, 0) == (0, 1)


def test_thresholds_keep_their_promise_on_new_images():
    """The expected accuracy on new images reaches the target. If only the measured accuracy had to, about half miss."""
    new, _ = scored(50_000, 1000)
    kept = {"bound": 0, "measured": 0}
    for seed in range(50):
        scores, correct = scored(1000, seed)
        measured = [each for each in accuracy_by_coverage(scores, correct) if each.accuracy >= 0.95]
        for name, chosen in (("bound", choose_threshold(scores, correct, 0.95)), ("measured", measured[-1])):
            kept[name] += new[new >= chosen.score].mean() >= 0.95
    assert kept["bound"] >= 42
    assert kept["measured"] <= 35


def test_few_images_reach_no_high_target():
    scores = np.linspace(0.5, 1, 267)
    assert choose_threshold(scores, np.ones(267, bool), 0.99) is None
    assert choose_threshold(np.linspace(0.5, 1, 268), np.ones(268, bool), 0.99).coverage == 1
    assert choose_threshold(scores, np.zeros(267, bool), 0.5) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 10**400},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": None},
        {"temperature": [1.0]},
        {"threshold": 1.5},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"threshold": "0.5"},
        {"threshold": {}},
        {"target_accuracy": 2},
        {"coverage": float("inf")},
        {"ece_after": "low"},
        {"images": -1},
        {"images": 1.5},
        {"images": 10**30},
        {"images": None},
    ],
    ids=str,
)
def test_impossible_calibrations(fields):
    with pytest.raises(ValueError, match=f"calibration has an invalid {next(iter(fields))}"):
        Calibration.from_dict(fields)


def test_calibrations_survive_json():
    chosen = Calibration(0.7, 100, 0.08, 0.02, 0.96, 0.99, 0.995, 0.3)
    assert Calibration.from_dict(chosen.to_dict()) == chosen
    assert Calibration.from_dict({}) == UNCALIBRATED
    assert Calibration.from_dict({"temperature": 2.0, "of_later": "x"}) == Calibration(2.0)
    with pytest.raises(ValueError, match="must be a dict"):
        Calibration.from_dict([1.0])
