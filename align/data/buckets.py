"""Aspect-ratio buckets: images of several shapes in one run, of one shape in each step.

A step trains on one bucket alone, whatever the micro-batch, so that eight times one is one times
eight. Which bucket, and which of its samples, are functions of the step: nothing needs resuming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from align.data.images import ImageFile
from align.data_config import Bucket

__all__ = ["assign_buckets", "bucket_of_step", "nearest_bucket"]


def nearest_bucket(size: Bucket, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of the nearest aspect ratio, of several such the one of the nearest area.

    Distances are of logarithms: twice as wide is as far as twice as high.

    Args:
        size: ``(height, width)`` in pixels.
    """

    def distance(bucket: Bucket) -> tuple[float, float]:
        (height, width), (h, w) = size, bucket
        aspect = abs(math.log(w / h) - math.log(width / height))
        return round(aspect, 6), abs(math.log(h * w) - math.log(height * width))

    return min(buckets, key=distance)


def assign_buckets(images: Sequence[ImageFile], buckets: Sequence[Bucket]) -> dict[str, Bucket]:
    """The bucket of each image, by the SHA-256 of its file; only headers are read."""
    return {image.sha256: nearest_bucket(image.size(), buckets) for image in images}


@lru_cache(maxsize=4)
def _cycle(seed: int, counts: tuple[int, ...], number: int) -> np.ndarray:
    return np.random.default_rng((seed, number)).permutation(np.repeat(range(len(counts)), counts))


def bucket_of_step(seed: int, sizes: Sequence[int], batch_size: int, step: int) -> tuple[int, int]:
    """The bucket of step ``step`` (from 1), and the number (from 1) of that bucket's step.

    Steps come in cycles in which each bucket has as many as its samples fill batches, at least
    one, in an order drawn anew for each cycle: over a cycle all samples are met about once.

    Args:
        sizes: samples in each bucket, none of them 0.
    """
    counts = tuple(max(1, round(size / batch_size)) for size in sizes)
    number, place = divmod(step - 1, sum(counts))
    cycle = _cycle(seed, counts, number)
    bucket = int(cycle[place])
    earlier = int((cycle[:place] == bucket).sum())
    return bucket, number * counts[bucket] + earlier + 1
