"""The linear probe, compared with scikit-learn's, and the ranking, compared with loops over the paper's definitions."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from shvit.audit import labels as probing
from shvit.audit.labels import _Discriminant, _Moments, assign_folds, estimated_errors, find_suspects, out_of_fold


@pytest.fixture(scope="module")
def digits():
    data, target = load_digits(return_X_y=True)
    return data.astype(np.float32), target.astype(np.int64)


def flipped(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with a share of wrong ones, and the indices of these."""
    generator = np.random.default_rng(seed)
    wrong = generator.choice(len(labels), round(share * len(labels)), replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + generator.integers(1, 10, len(wrong))) % 10
    return given, wrong


@pytest.mark.parametrize("shrinkage", [0.1, 0.9])
def test_the_probe_is_linear_discriminant_analysis(digits, shrinkage):
    data, target = digits
    data = data[:, data.std(0) > 0]
    images = target != 3  # a class without images
    ours = _Discriminant.of(
        _Moments.of(torch.from_numpy(data[images]), torch.from_numpy(target[images]), 10), shrinkage
    )
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(
        data[images].astype(float), target[images]
    )
    variance = theirs.covariance_.diagonal().mean()
    expected = theirs.decision_function(data) - np.log(theirs.priors_)
    others = [number for number in range(10) if number != 3]
    actual = ours(torch.from_numpy(data))[:, others].numpy() / variance
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-2)
    np.testing.assert_allclose(ours.log_priors[others].exp(), theirs.priors_, rtol=1e-5)
    assert ours.log_priors[3] == -torch.inf


@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_labels_of_digits_are_found(digits, seed, monkeypatch):
    monkeypatch.setattr(probing, "ROWS_AT_ONCE", 500)
    data, target = digits
    given, wrong = flipped(target, 0.05, seed)
    folds = assign_folds(given, np.arange(len(given)), 5, seed)
    probabilities = out_of_fold(data, given, folds, 11)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert not probabilities[:, 10].any()  # a class without images is impossible
    suspects = find_suspects(probabilities, given)
    assert abs(len(suspects.indices) - len(wrong)) < 0.3 * len(wrong)
    assert np.isin(wrong, suspects.indices[: len(wrong)]).mean() > 0.85
    right = np.isin(suspects.indices, wrong)
    assert (suspects.suggested == target[suspects.indices])[right].mean() > 0.9


def test_an_image_is_not_judged_by_a_probe_that_saw_it(digits):
    data, target = digits
    folds = assign_folds(target, np.arange(len(target)), 5, 0)
    one = np.flatnonzero(folds == 0)[7]
    before = out_of_fold(data, target, folds, 10)
    given = target.copy()
    given[one] = (target[one] + 1) % 10
    np.testing.assert_allclose(out_of_fold(data, given, folds, 10)[one], before[one], atol=0.02)


def test_suspects_by_the_definition_of_confident_learning(monkeypatch):
    monkeypatch.setattr(probing, "ROWS_AT_ONCE", 70)
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([0.4] * 4, 300).astype(np.float32)
    labels = generator.choice(3, 300, p=[0.5, 0.3, 0.2])  # class 3 has no images
    thresholds = [probabilities[labels == number, number].mean() for number in range(3)] + [np.inf]
    joint = np.zeros((4, 4))
    for row, label in zip(probabilities, labels, strict=True):
        if above := [number for number in range(4) if row[number] >= thresholds[number]]:
            joint[label, max(above, key=row.__getitem__)] += 1
    errors = sum(
        (labels == label).sum() * (joint[label].sum() - joint[label, label]) / joint[label].sum() for label in range(3)
    )
    assert estimated_errors(probabilities, labels) == pytest.approx(errors)

    suspects = find_suspects(probabilities, labels)
    ranked = sorted(range(300), key=lambda index: probabilities[index, labels[index]])
    wrong = [index for index in ranked if probabilities[index].argmax() != labels[index]]
    assert suspects.indices.tolist() == wrong[: round(errors)]
    assert suspects.suggested.tolist() == probabilities[suspects.indices].argmax(1).tolist()
    np.testing.assert_array_equal(suspects.probabilities, probabilities[suspects.indices].max(1))
    np.testing.assert_array_equal(suspects.given, probabilities[suspects.indices, labels[suspects.indices]])


def test_folds_are_stratified_and_keep_groups_together():
    labels = np.repeat([0, 1, 2], [50, 23, 5])
    groups = np.arange(78)
    groups[[3, 60, 77]] = 3
    folds = assign_folds(labels, groups, 5, seed=1)
    assert len(set(folds[[3, 60, 77]])) == 1
    free = np.setdiff1d(np.arange(78), [60, 77])  # the members beyond the first follow it
    for number in range(3):
        counts = np.bincount(folds[free][labels[free] == number], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (assign_folds(labels, groups, 5, seed=1) == folds).all()
    assert (assign_folds(labels, groups, 5, seed=2) != folds).any()
