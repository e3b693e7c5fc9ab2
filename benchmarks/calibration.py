"""Whether a temperature and a score threshold keep their promise on images that they were not chosen on.

The validation images are split into two halves by a seed. The temperature and the threshold are chosen on one half, and
the calibration error, the accuracy and the coverage are measured on the other; then the halves swap places. This is
repeated for several seeds.

The expected calibration error of a model is above 0 even if its scores are perfectly calibrated, since the accuracy of
a bin of few images differs from its mean score by chance. `noise` is this part: the mean error of the same scores with
labels drawn from them. Each half has more noise than the whole, so the value is measured on all images: each half with
the temperature of the other one.

`rules` compares ways to choose the threshold: the smallest score whose accuracy on the images reaches the target
(`measured`), the same after adding one correct and one wrong image (`smoothed`), and the rule of
`confidence.choose_threshold` (`bound`): the lower bound of the accuracy reaches the target. `simulation` compares them
for a perfectly calibrated model, on new images of its whole distribution.

    python benchmarks/calibration.py runs/s1/best.safetensors ../shared/data/imagenette160
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from shvit import engines
from shvit.confidence import (
    Threshold,
    accuracy_by_coverage,
    choose_threshold,
    expected_calibration_error,
    fit_temperature,
    top1_scores,
    wilson_interval,
)
from shvit.data.sources import open_source
from shvit.evaluate import evaluate_model
from shvit.modelfile import load
from shvit.provenance import facts

Choose = Callable[[np.ndarray, np.ndarray, float], Threshold | None]
NOISE_DRAWS = 50
SIMULATED, NEW_IMAGES = (150, 500, 2000, 5000), 100_000
TARGETS = (0.9, 0.95, 0.99)


def smallest(accuracy: Callable[[Threshold], float]) -> Choose:
    """A rule: the smallest score for which `accuracy` of the images with at least this score reaches the target."""

    def choose(scores: np.ndarray, correct: np.ndarray, target: float) -> Threshold | None:
        reached = [each for each in accuracy_by_coverage(scores, correct) if accuracy(each) >= target]
        return reached[-1] if reached else None

    return choose


RULES: dict[str, Choose] = {
    "measured": smallest(lambda each: each.accuracy),
    "smoothed": smallest(lambda each: (each.correct + 1) / (each.covered + 2)),
    "bound": choose_threshold,
}


def halves(count: int, seeds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The indices of two halves, in both orders, for each seed."""
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(count)
        one, other = order[: count // 2], order[count // 2 :]
        yield one, other
        yield other, one


def noise(scores: np.ndarray, seed: int = 0) -> float:
    """The calibration error to expect of perfectly calibrated scores."""
    random = np.random.default_rng(seed)
    return mean(expected_calibration_error(scores, random.random(len(scores)) < scores) for _ in range(NOISE_DRAWS))


def calibration_errors(logits: np.ndarray, labels: np.ndarray, seeds: int) -> dict[str, Any]:
    """Temperatures and calibration errors, measured on images that the temperature was not fitted on."""
    temperatures, on_half, half_noise, on_all, all_noise = [], [], [], [], []
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for chosen, new in halves(len(labels), seeds):
        temperature = fit_temperature(logits[chosen], labels[chosen])
        assert temperature is not None
        temperatures.append(temperature)
        parts.append(top1_scores(logits[new], labels[new], temperature))
        on_half.append(expected_calibration_error(*parts[-1]))
        half_noise.append(noise(parts[-1][0]))
        if len(parts) == 2:
            scores, correct = (np.concatenate(both) for both in zip(*parts, strict=True))
            on_all.append(expected_calibration_error(scores, correct))
            all_noise.append(noise(scores))
            parts = []
    return {
        "temperature": {"mean": mean(temperatures), "least": min(temperatures), "most": max(temperatures)},
        "ece_before": expected_calibration_error(*top1_scores(logits, labels)),
        "ece_after": {"mean": mean(on_all), "least": min(on_all), "most": max(on_all), "noise": mean(all_noise)},
        "ece_after_on_one_half": {
            "mean": mean(on_half),
            "least": min(on_half),
            "most": max(on_half),
            "noise": mean(half_noise),
        },
    }


def summary(target: float, outcomes: list[tuple[float, float] | None]) -> dict[str, Any]:
    """Summarize (accuracy, coverage) on new images; None where no score reached the target."""
    found = [each for each in outcomes if each is not None]
    row: dict[str, Any] = {"target": target, "none": 1 - len(found) / len(outcomes)}
    if found:
        accuracies = [accuracy for accuracy, _ in found]
        row |= {
            "accuracy": mean(accuracies),
            "least_accuracy": min(accuracies),
            "below_target": mean(accuracy < target for accuracy in accuracies),
            "a_point_below_target": mean(accuracy < target - 0.01 for accuracy in accuracies),
            "coverage": mean(coverage for _, coverage in found),
        }
    return row


def on_data(logits: np.ndarray, labels: np.ndarray, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """The rules on halves of the images, with the temperature of the same half."""
    drawn = []
    for chosen, new in halves(len(labels), seeds):
        temperature = fit_temperature(logits[chosen], labels[chosen]) or 1.0
        drawn.append([top1_scores(logits[part], labels[part], temperature) for part in (chosen, new)])

    def outcome(choose: Choose, target: float, chosen: Any, new: Any) -> tuple[float, float] | None:
        threshold = choose(*chosen, target)
        kept = new[0] >= (2 if threshold is None else threshold.score)
        return (float(new[1][kept].mean()), float(kept.mean())) if kept.any() else None

    return {
        name: [summary(target, [outcome(choose, target, *parts) for parts in drawn]) for target in TARGETS]
        for name, choose in RULES.items()
    }


def simulated(seeds: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The rules on scores of a beta distribution (mean 0.83) that are exactly calibrated."""
    new = np.random.default_rng(0).beta(3, 0.6, NEW_IMAGES)

    def outcome(choose: Choose, target: float, images: int, seed: int) -> tuple[float, float] | None:
        random = np.random.default_rng(seed)
        scores = random.beta(3, 0.6, images)
        threshold = choose(scores, random.random(images) < scores, target)
        if threshold is None:
            return None
        kept = new[new >= threshold.score]
        return float(kept.mean()), len(kept) / len(new)

    return {
        f"{images} images": {
            name: [
                summary(target, [outcome(choose, target, images, seed) for seed in range(seeds)]) for target in TARGETS
            ]
            for name, choose in RULES.items()
        }
        for images in SIMULATED
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--hardware", default="cpu", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    model_file, source = load(args.model), open_source(args.data)
    report = evaluate_model(model_file, engines.load(model_file, "torch", "fp32", "cpu"), source, "val", workers=2)
    evaluation: Any = report.evaluation
    logits, labels = evaluation.outputs.logits, evaluation.outputs.labels
    errors, rules = calibration_errors(logits, labels, args.seeds), on_data(logits, labels, args.seeds)
    about = facts()
    result = {
        "what": f"calibration of {model_file.architecture.name} on {args.data.name}, measured on images that neither "
        "temperature nor threshold was chosen on",
        "value": errors["ece_after"]["mean"],
        "unit": "expected calibration error (15 bins), from 0 to 1",
        "images": evaluation.images,
        "image_size": model_file.preprocess.image_size,
        "top1": evaluation.top1,
        "top1_interval": wilson_interval(int(np.trace(evaluation.confusion)), evaluation.images),
        "seeds": args.seeds,
        **errors,
        "rules": rules,
        "simulation": simulated(200),
        "threads": torch.get_num_threads(),
        **about,
    }
    path = args.results / f"calibration_{args.hardware}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
