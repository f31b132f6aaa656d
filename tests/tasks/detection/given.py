"""Given samples of the golden values, padded."""

import jax.numpy as jnp
import numpy as np

from vig_jax.ops.sampling import Samples
from vig_jax.tasks.detection.targets import Truth

PADDING = 3


def samples(arrays, prefix, count):
    """Returns the samples of one image: `count` rows from PREFIXpos# and PREFIXneg#."""
    positive, negative = arrays[prefix.format("pos")], arrays[prefix.format("neg")]
    chosen = np.concatenate([positive, negative])
    rank = np.arange(count)
    padded = np.pad(chosen, (0, count - len(chosen)))
    return Samples(*map(jnp.asarray, (padded, rank < len(positive), rank < len(chosen))))


def truth(boxes, labels, count, dtype):
    """Returns the objects of an image with rows of zeros below."""
    padding = count - len(boxes)
    return Truth(
        jnp.asarray(np.pad(boxes, ((0, padding), (0, 0))), dtype),
        jnp.asarray(np.pad(labels, (0, padding))),
        jnp.arange(count) < len(boxes),
    )
