"""Bytes to batches: data sets, host transforms, the loader, and (`mixup`) mixing on the device.

`vig_jax.augment.mixup` is not imported here: worker processes need no JAX.
"""

from vig_jax.data.datasets.registry import Source, open_source
from vig_jax.data.loader.bad_images import BadImages
from vig_jax.data.loader.batches import (
    Batch,
    BatchIterator,
    eval_batches,
    steps_per_epoch,
    train_batches,
)

__all__ = [
    "BadImages",
    "Batch",
    "BatchIterator",
    "Source",
    "eval_batches",
    "open_source",
    "steps_per_epoch",
    "train_batches",
]
