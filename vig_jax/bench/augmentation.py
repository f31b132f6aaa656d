"""Times the augmentation of a batch on the device."""

import functools
import time

import jax
import numpy as np

from vig_jax.augment.mixup import mix_images
from vig_jax.config import DataConfig
from vig_jax.data.dataset import Dataset
from vig_jax.data.inspection import spread
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.errors import ConfigError
from vig_jax.tasks.classification import augment

_ROUNDS = 8  # at least
_DISTINCT = 64  # images that fill the batch


def device_speed(dataset: Dataset, data: DataConfig, batch_size: int, seconds: float) -> float:
    """Returns the median seconds per batch on JAX's device.

    RandAugment or colour jitter, normalisation, erasing, mixup and CutMix are one program. In the
    training step, XLA may fuse it with the model. The flip is done on the host.

    Args:
        dataset: the training split.
        data: augmentation and image size. If `mixup_group` does not divide the batch, the group is
            the whole batch.
        batch_size: even.
        seconds: approximate duration, after the compilation.

    Raises:
        ConfigError: an odd batch.
    """
    if batch_size < 2 or batch_size % 2:
        raise ConfigError(f"--device-batch {batch_size} must be even and at least 2")
    group = data.mixup_group if batch_size % data.mixup_group == 0 else batch_size
    preprocess = ClassificationPreprocess(data, train=True)
    some = [
        preprocess(dataset[index], np.random.default_rng(index))["image"]
        for index in spread(len(dataset), min(batch_size, _DISTINCT))
    ]
    images = jax.device_put(np.resize(np.stack(some), (batch_size, *some[0].shape)))

    @jax.jit
    def run(key: jax.Array, images: jax.Array) -> jax.Array:
        augment_key, mix_key = jax.random.split(key)
        mixed, _ = mix_images(
            mix_key,
            augment(augment_key, images, data),
            mixup_alpha=data.mixup_alpha,
            cutmix_alpha=data.cutmix_alpha,
            group=group,
        )
        return mixed

    fold = jax.jit(functools.partial(jax.random.fold_in, jax.random.key(0)))
    jax.block_until_ready(run(fold(0), images))
    times: list[float] = []
    begun = time.monotonic()
    while time.monotonic() - begun < seconds or len(times) < _ROUNDS:
        key = jax.block_until_ready(fold(len(times)))
        start = time.perf_counter()
        jax.block_until_ready(run(key, images))
        times.append(time.perf_counter() - start)
    return float(np.median(times))
