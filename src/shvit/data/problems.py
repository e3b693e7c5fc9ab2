"""Problems of annotations: counted by kind, each with its first example; and the check of a box."""

from collections.abc import Callable, Sequence

from ..errors import counted

SLACK = 1.0
"""Number of pixels by which a box may extend beyond its image without a warning, because annotation tools round."""


class Problems:
    """Counts the problems of each kind and keeps the first example of each."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, noun: str, kind: str, example: str) -> None:
        """Count a problem, such as ("annotation", "left out: unknown image_id", "annotation 5")."""
        count, first = self._kinds.get((noun, kind), (0, example))
        self._kinds[noun, kind] = count + 1, first

    def lines(self) -> list[str]:
        """One line for each kind of problem."""
        kinds = self._kinds.items()
        return [f"{counted(count, noun)} {kind}, such as {example}" for (noun, kind), (count, example) in kinds]


def cut_box(
    box: Sequence[float], height: int, width: int, add: Callable[[str], object]
) -> tuple[float, float, float, float] | None:
    """Clip a box (left, top, right, bottom in pixels) to its image. None if nothing is left.

    `add` is called with a text if the box lies outside the image, wholly or by more than `SLACK` pixels.
    """
    left, top, right, bottom = box
    cut = max(0.0, left), max(0.0, top), min(width, right), min(height, bottom)
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        add("left out: bbox is outside the image")
        return None
    if min(left, top) < -SLACK or right > width + SLACK or bottom > height + SLACK:
        add("with a bbox cut off at the edge of the image")
    return cut
