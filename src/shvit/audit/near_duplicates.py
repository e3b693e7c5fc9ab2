"""Find near-duplicates: recompressed, resized or mirrored copies of an image.

Every pair of images is compared by the lowest spatial frequencies of their thumbnails. Similar pairs are then verified
on the pixels of the thumbnails. Unlike a lookup by hash, this misses no similar pair.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8

FREQUENCIES = 8
"""Number of horizontal and of vertical frequencies that are compared."""
SIMILAR = 0.9
"""Minimum correlation of the frequencies. Copies reach 0.99; among 779,376 pairs of different photographs, the largest
correlation was 0.88."""
MAX_DIFFERENCE = 0.25
"""Maximum difference of two thumbnails, relative to their contrast. Copies stay below 0.22; among the 13,394 images of
Imagenette, the smallest difference of two different pictures is 0.33."""
FAINT = 12.0
"""Contrast that is assumed for images with less, because compression adds noise of one or two levels to any image."""
MIN_CONTRAST = 3.0
"""Images with a lower standard deviation, in levels of 255, are not compared: nearly uniform images look alike."""
PRIOR = 100
"""Weight of the prior for the statistics of the frequencies, as a number of images."""
TILE = 2048
VERIFIED = 4096
"""Number of pairs that are verified at once."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of near-duplicates, by index."""

    first: Int64[np.ndarray, " n"]
    second: Int64[np.ndarray, " n"]
    """Larger than `first`."""
    differences: Float32[np.ndarray, " n"]
    """From 0 to `MAX_DIFFERENCE`; see there."""
    mirrored: Bool[np.ndarray, " n"]

    def groups(self, images: int) -> Int64[np.ndarray, " images"]:
        """A group number for each image. Images have the same number if they are connected by near-duplicates."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        graph = coo_array((np.ones(len(self.first), bool), (self.first, self.second)), (images, images))
        return connected_components(graph, directed=False)[1].astype(np.int64)


def find_pairs(thumbnails: UInt8[np.ndarray, "n s s 3"], usable: Bool[np.ndarray, " n"]) -> Pairs:
    """All pairs of near-duplicates among the usable images."""
    contrast = contrasts(thumbnails)
    indices = np.flatnonzero(usable & (contrast >= MIN_CONTRAST))
    even, odd = frequencies(thumbnails[indices])
    tiles = [slice(start, start + TILE) for start in range(0, len(indices), TILE)]
    found = [_verified(thumbnails, contrast, *np.zeros((2, 0), np.int64))]  # without images, there are no tiles
    for number, rows in enumerate(tiles):
        for columns in tiles[number:]:
            first, second = torch.nonzero(_similar(even, odd, rows, columns)).numpy().T
            found.append(_verified(thumbnails, contrast, indices[first + rows.start], indices[second + columns.start]))
    return Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))


def contrasts(thumbnails: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, " n"]:
    """Standard deviation of the pixels of each thumbnail, as the mean of the three channels."""
    chunks = np.array_split(thumbnails, 1 + len(thumbnails) // VERIFIED)
    return np.concatenate([chunk.std((1, 2), dtype=np.float32).mean(1) for chunk in chunks])


def frequencies(thumbnails: UInt8[np.ndarray, "n s s 3"]) -> tuple[torch.Tensor, torch.Tensor]:
    """The even and the odd horizontal frequencies of each thumbnail. The sum of their squares is 1.

    The frequencies are those of a discrete cosine transform, without the mean brightness. Mirroring an image changes
    only the sign of the odd ones. Each frequency is centered and scaled by its statistics over all images, so that what
    all images share, such as a light background, does not make them similar.
    """
    side = thumbnails.shape[1]
    order, places = np.arange(FREQUENCIES), np.arange(side) + 0.5
    waves = np.cos(np.pi / side * order[:, None] * places).astype(np.float32)
    gray = np.array([0.299, 0.587, 0.114], np.float32)
    chunks = np.array_split(thumbnails, 1 + len(thumbnails) // VERIFIED)
    values = np.concatenate([waves @ (chunk @ gray) @ waves.T for chunk in chunks])
    values *= np.hypot(order[:, None], order)  # amplitudes of photographs fall with 1/frequency
    values /= np.linalg.norm(values, axis=(1, 2), keepdims=True) + 1e-6
    mean = values.sum(0) / (len(values) + PRIOR)
    mean[:, 1::2] = 0
    values -= mean
    values /= np.sqrt(((values**2).sum(0) + PRIOR / (FREQUENCIES**2 - 1)) / (len(values) + PRIOR))
    values /= np.linalg.norm(values, axis=(1, 2), keepdims=True) + 1e-6
    even, odd = (torch.from_numpy(values[:, :, start::2]).flatten(1) for start in (0, 1))
    return even, odd


def _similar(even: torch.Tensor, odd: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """Whether each pair of a tile is similar, directly or mirrored. Only pairs with a smaller first index count."""
    same = even[rows] @ even[columns].T
    turned = odd[rows] @ odd[columns].T
    similar = same.add_(turned.abs_()).ge_(SIMILAR).bool()
    return similar.triu_(1) if rows == columns else similar


def _verified(
    thumbnails: np.ndarray, contrast: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pairs whose thumbnails differ little: both indices, the difference, and whether they are mirrored."""
    direct, mirrored = np.zeros((2, len(first)), np.float32)
    for start in range(0, len(first), VERIFIED):
        chunk = slice(start, start + VERIFIED)
        one, other = (thumbnails[indices[chunk]].astype(np.float32) for indices in (first, second))
        for result, compared in ((direct, other), (mirrored, other[:, :, ::-1])):
            result[chunk] = np.sqrt(((one - compared) ** 2).mean((1, 2, 3)))
    difference = np.minimum(direct, mirrored) / np.minimum(contrast[first], contrast[second]).clip(FAINT)
    kept = difference <= MAX_DIFFERENCE
    return first[kept], second[kept], difference[kept], (mirrored < direct)[kept]
