"""The accuracy floor of int8: a limit on the accuracy that int8 may lose on labelled images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..console import METRICS
from ..data.loader import Batch
from ..engines.base import Candidate
from ..errors import Failure, InputError
from ..tasks.base import Predict, Task


@dataclass(frozen=True)
class Floor:
    """The accuracy that int8 loses, and the layers that run in higher precision to limit the loss."""

    metric: str
    """`top1` or `AP`."""
    max_drop: float
    """Maximum loss in points."""
    reference: float
    """The metric in fp32, from 0 to 1."""
    score: float
    """The metric in int8."""
    images: int
    layers: int
    """Number of layers whose precision can be chosen individually."""
    given_back: dict[str, float] = field(default_factory=dict)
    """Layers in higher precision, each with the share of the quantization error that it causes. Largest share first."""
    tried: list[tuple[int, float]] = field(default_factory=list)
    """(number of layers in higher precision, score), in the order of the search."""

    @property
    def drop(self) -> float:
        """Loss in points."""
        return 100 * (self.reference - self.score)

    @property
    def holds(self) -> bool:
        """Whether the loss is at most `max_drop`."""
        return self.drop <= self.max_drop + 1e-9  # allows for rounding errors

    def to_dict(self) -> dict[str, Any]:
        """The floor as plain data. The score is stored a second time, under the name of the metric."""
        return {**vars(self), self.metric: self.score, "drop": self.drop}


class FloorError(Failure):
    """Every int8 network that was tried loses too much accuracy."""


class Judge:
    """Accepts int8 networks that lose at most `max_drop` points of the task's headline metric on labelled batches.

    A judge is used as `ExportJob.accept`. `log` is called with a description of each step.
    """

    def __init__(
        self, task: Task, validation: Iterable[Batch], max_drop: float, log: Callable[[str], None] = lambda _: None
    ) -> None:
        self._task, self._validation, self._max_drop, self._log = task, validation, max_drop, log
        self._reference: float | None = None
        self._tried: list[tuple[int, float]] = []
        self.floors: list[Floor] = []
        """One floor for each candidate evaluated so far."""

    def __call__(self, candidate: Candidate) -> bool:
        """Evaluate a candidate. Raises InputError if the validation images have no objects."""
        if self._reference is None:
            self._reference, _ = self._score(candidate.exact)
            if self._reference < 0:
                raise InputError("the accuracy of int8 cannot be checked: no validation image has an object")
        score, images = self._score(candidate.runs)
        given_back, layers = dict(candidate.given_back), candidate.layers
        metric, bounds = self._task.headline, (self._max_drop, self._reference)
        floor = Floor(metric, *bounds, score, images, layers, given_back, self._tried)
        self.floors.append(floor)
        if given_back:
            self._tried.append((len(given_back), score))
            self._log(f"{len(given_back)} of {layers} layers in higher precision: {floor.drop:+.2f} points lost")
            return floor.holds
        self._log(
            f"{METRICS.get(metric, metric)} {score:.2%} in int8, {self._reference:.2%} in fp32: {floor.drop:+.2f} "
            f"points lost, {self._max_drop} allowed"
        )
        if layers and not floor.holds:
            self._log(f"ranking {layers} layers by the error that each causes")
        return floor.holds

    def result(self) -> Floor:
        """The accepted floor with the fewest layers in higher precision. Raises FloorError if none was accepted."""
        if held := [floor for floor in self.floors if floor.holds]:
            return min(held, key=lambda floor: len(floor.given_back))
        best = max(self.floors, key=lambda floor: floor.score)
        loss = f"int8 loses {best.drop:.2f} points of {METRICS.get(best.metric, best.metric)}"
        if best.layers:
            raise FloorError(
                f"{loss} at best, with {len(best.given_back)} of {best.layers} layers in higher precision; "
                f"{best.max_drop} are allowed. Nothing was written"
            )
        raise FloorError(
            f"{loss}; {best.max_drop} are allowed. Nothing was written. Try the format openvino, which can run some "
            "layers in higher precision"
        )

    def _score(self, predict: Predict) -> tuple[float, int]:
        evaluation = self._task.evaluate(predict, self._validation)
        return evaluation.metrics()[self._task.headline], evaluation.images
