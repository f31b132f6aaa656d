"""RandAugment on the device, with Pillow's pixels.

It follows timm 0.4.12 (`rand-m9-mstd0.5-inc1`), which ViG was trained with. Each operation gives
Pillow's result for the same argument, uint8 in and uint8 out.

    images, matrices = rand_augment(
        key, images, layers=2, magnitude=9.0, magnitude_std=0.5, fill=mean_color(mean)
    )

Row i of the batch draws from `fold_in(key, i)`, so a global batch is augmented alike on any number
of devices and processes.
"""

import functools

import jax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from vig_jax.augment.keys import row_keys
from vig_jax.augment.rand_augment.geometry import compose, identities, matrix
from vig_jax.augment.rand_augment.operations import RAND_AUGMENT_OPS, Op, draw_op
from vig_jax.augment.rand_augment.rounds import apply_ops
from vig_jax.sharding.kernels import ROWS, shard_kernel

__all__ = ["RAND_AUGMENT_OPS", "Op", "apply_ops", "draw_op", "mean_color", "rand_augment"]


def rand_augment(
    key: PRNGKeyArray,
    images: UInt8[Array, "B H W 3"],
    *,
    layers: int,
    magnitude: float,
    magnitude_std: float,
    fill: tuple[int, int, int],
) -> tuple[UInt8[Array, "B H W 3"], Float[Array, "B 2 3"]]:
    """Applies RandAugment with timm's "increasing" operations.

    Args:
        key: consumed here.
        images: RGB pixels.
        layers: operations in a row, each applied with probability 1/2.
        magnitude: mean magnitude, 0 to 10.
        magnitude_std: standard deviation of the magnitude, which is then clipped to 0..10.
        fill: colour of pixels from outside of the image.

    Returns:
        The images, and the affine map that was applied to each: `matrix @ (x, y, 1)` is the
        position in the input of position (x, y) in the output, in pixels; pixel i spans i to i + 1.
        The identity if no geometric operation was drawn.
    """
    _, H, W, _ = images.shape
    draw = functools.partial(
        draw_op, magnitude=magnitude, magnitude_std=magnitude_std, height=H, width=W
    )

    def augment(keys: Array, images: Array) -> tuple[Array, Array]:
        layer_keys = jax.vmap(lambda key: jax.random.split(key, layers))(keys)
        matrices = identities(images.shape[0])
        for layer in range(layers):
            ops = jax.vmap(draw)(layer_keys[:, layer])
            images = apply_ops(ops, images, fill)
            of_layer = jax.vmap(functools.partial(matrix, height=H, width=W))(ops)
            matrices = jax.vmap(compose)(matrices, of_layer)
        return images, matrices

    sharded = shard_kernel(augment, (ROWS, ROWS), (ROWS, ROWS))
    return sharded(row_keys(key, images.shape[0]), images)


def mean_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Returns timm's fill colour: 255 times the mean, rounded."""
    red, green, blue = (min(255, round(255 * x)) for x in mean)
    return red, green, blue
