"""One pass over the images of an audit: the features of a network, a small copy of each image, and its size."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from ..data.dataset import Split
from ..data.decode import ImageInput
from ..data.loader import Loader, worker_death_as_failure
from ..data.reduced import open_small
from ..data.transforms import SHRINK_UNTIL, Preprocess, Reader, fast_eval_decoder, resized_sides
from ..engines.portable import Portable
from ..engines.threads import torch_threads
from ..engines.torch import DTYPES, gpu_failures, has_bf16
from ..errors import Failure, counted
from ..model.fuse import fuse
from ..modelfile import ModelFile
from ..pretrained import transfer

THUMBNAIL = 32
"""Side of the small copies in pixels. The whole image is squeezed into the square."""


@dataclass(frozen=True)
class Views:
    """What the audit knows about the images. Rows of unusable images are zero."""

    thumbnails: UInt8[np.ndarray, "n 32 32 3"]
    sizes: Int64[np.ndarray, "n 2"]
    """Height and width of the upright images, in pixels."""
    bad: dict[int, str]
    """The reason why an image cannot be used, by index."""
    features: Float32[np.ndarray, "n d"] | None = None
    """Output of the network before its classifier; None without a network."""

    @property
    def usable(self) -> Bool[np.ndarray, " n"]:
        """Whether each image can be used."""
        mask = np.ones(len(self.sizes), bool)
        mask[list(self.bad)] = False
        return mask


@dataclass(frozen=True)
class ViewReader:
    """Reads the network's input, the thumbnail and the size of an image, and decodes it once."""

    preprocess: Preprocess | None
    """None: no input for a network."""

    @cached_property
    def _input(self) -> Reader:
        assert self.preprocess is not None
        return fast_eval_decoder(self.preprocess)

    def __call__(self, source: ImageInput) -> tuple[UInt8[Tensor, "3 h w"], Any]:
        """The input, and the pair (thumbnail, size). Raises BadImage as `decode` does."""
        image = open_small(source)
        size = image.height, image.width
        needed = THUMBNAIL if self.preprocess is None else min(resized_sides(*size, self.preprocess))
        with image.in_turn():
            values = image.decode(min(size) / (SHRINK_UNTIL * needed)).values
            small = Image.fromarray(values).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
        pixels = torch.empty(3, 0, 0, dtype=torch.uint8) if self.preprocess is None else self._input(values)
        return pixels, (np.asarray(small), size)


class _ViewedSplit(Split):
    """A split whose examples have their thumbnail and size as target."""

    def example(self, index: int, read: Any) -> Any:
        return read(self.source(index))


def view(
    split: Split,
    model_file: ModelFile | None,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Views:
    """Look at all images once.

    Args:
        model_file: A classifier, whose features are computed; None for none.
        workers: Worker processes that decode images; 0 decodes in this process.
        threads: CPU threads of the network; None for torch's default.
        progress: Called with the number of images of each batch.

    Raises:
        Failure: No image can be used.
    """
    count = len(split)
    thumbnails = np.zeros((count, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    sizes, bad, features = np.zeros((count, 2), np.int64), {}, None
    network = None if model_file is None else feature_network(model_file, device)
    reader = ViewReader(None if model_file is None else model_file.preprocess)
    viewed = _ViewedSplit(split.images, split.labels, split.names, split.shards, split.bad)
    with worker_death_as_failure(), torch_threads(threads), gpu_failures(torch.device(device)), torch.inference_mode():
        for batch in Loader(viewed, reader, batch_size, workers):
            bad |= batch.bad
            if batch.indices:
                small, shapes = zip(*batch.targets, strict=True)
                thumbnails[batch.indices], sizes[batch.indices] = np.stack(small), shapes
                if network is not None:
                    rows = network(batch.images.to(device, memory_format=torch.channels_last)).float().cpu().numpy()
                    features = np.zeros((count, rows.shape[1]), np.float32) if features is None else features
                    features[batch.indices] = rows
            progress(len(batch) + len(batch.bad))
    if len(bad) == count:
        raise Failure(f"none of {counted(count, 'image')} could be used, such as {split.names[0]}: {bad[0]}")
    return Views(thumbnails, sizes, bad, features)


def feature_network(model_file: ModelFile, device: str) -> Portable:
    """The folded network without its classifier: from uint8 images to pooled features (b, d).

    It computes in bf16 if the device has instructions for it. The linear probe does not notice the rounding.
    """
    architecture = replace(model_file.architecture, num_classes=0, distilled=False)
    headless: Any = transfer(model_file.model, architecture)
    network = Portable(fuse(headless), model_file.preprocess).eval()
    return network.to(device, DTYPES["bf16" if has_bf16(device) else "fp32"]).to(memory_format=torch.channels_last)  # pyright: ignore
