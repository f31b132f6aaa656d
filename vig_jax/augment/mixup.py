"""Mixup and CutMix on the device, as in timm 0.4.12.

Upstream draws one lambda for the batch of each GPU (128 images). Here every group of `group` rows
has its own draw, independent of the batch and the devices. Row i of a group of n rows is mixed with
row n - 1 - i.

    images, lam = mix_images(key, images, mixup_alpha=0.8, cutmix_alpha=1.0, group=128)
    targets = mix_targets(labels, lam, num_classes, smoothing=0.1)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vig_jax.errors import ConfigError
from vig_jax.sharding.kernels import on_every_device

_SWITCH_PROBABILITY = 0.5  # of CutMix, if both are on


class Mix(NamedTuple):
    """A draw per group. Outside the box, an image keeps the fraction `blend`; inside, nothing.

    Mixup has an empty box, CutMix a blend of 1.
    """

    lam: Float[Array, "G"]  # weight of an example's own label
    blend: Float[Array, "G"]
    box: Int[Array, "G 4"]  # top, bottom, left, right in pixels; the ends are excluded


def mix_images(
    key: PRNGKeyArray,
    images: Float[Array, "B H W C"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    group: int,
) -> tuple[Float[Array, "B H W C"], Float[Array, "G"]]:
    """Draws a `Mix` per group and applies it.

    Args:
        key: consumed here.
        images: normalised, floating point.
        mixup_alpha: lambda ~ Beta(alpha, alpha) for mixup; 0: no mixup.
        cutmix_alpha: the same for CutMix. If both are on, each group uses one of them, with equal
            probability.
        group: rows that share a draw; a smaller batch is one group.

    Returns:
        The mixed images and, for `mix_targets`, the weight of each group's own labels. If both
        alphas are 0, the images are unchanged and there is a single lambda of 1.

    Raises:
        ConfigError: the group does not divide the batch or is odd, or an alpha is negative.
    """
    if not (mixup_alpha or cutmix_alpha):
        return images, jnp.ones(1)
    batch, height, width, _ = images.shape
    mix = draw(
        key,
        batch,
        height,
        width,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        group=group,
    )
    return apply(images, mix), mix.lam


def draw(
    key: PRNGKeyArray,
    batch: int,
    height: int,
    width: int,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    group: int,
) -> Mix:
    """Draws how to mix a batch.

    Args:
        key: consumed here.
        batch: rows.
        height: of the images, pixels.
        width: of the images, pixels.
        mixup_alpha: as for `mix_images`.
        cutmix_alpha: as for `mix_images`.
        group: as for `mix_images`.

    Returns:
        batch / group draws.

    Raises:
        ConfigError: the group does not divide the batch or is odd, or an alpha is negative.
    """
    group = min(group, batch)
    if group < 2 or group % 2 or batch % group:
        raise ConfigError(
            f"config.data.mixup_group={group} must be even and divide the batch of {batch} images; "
            "or turn mixing off: config.data.mixup_alpha=0, config.data.cutmix_alpha=0"
        )
    if min(mixup_alpha, cutmix_alpha) < 0 or not (mixup_alpha or cutmix_alpha):
        raise ConfigError(
            f"config.data.mixup_alpha={mixup_alpha}, config.data.cutmix_alpha={cutmix_alpha}: "
            "both must be at least 0, and one of them above 0"
        )
    groups = (batch // group,)

    def drawn(key: PRNGKeyArray) -> Mix:
        switch_key, lam_key, centre_key = jax.random.split(key, 3)
        if mixup_alpha and cutmix_alpha:
            is_cutmix = jax.random.bernoulli(switch_key, _SWITCH_PROBABILITY, groups)
        else:
            is_cutmix = jnp.full(groups, cutmix_alpha > 0)
        alpha = jnp.where(is_cutmix, cutmix_alpha, mixup_alpha)
        lam = jax.random.beta(lam_key, alpha, alpha, groups, jnp.float32)
        centre_y, centre_x = jax.random.uniform(centre_key, (2, *groups))
        box = cutmix_box(lam, centre_y, centre_x, height, width)
        box = jnp.where(is_cutmix[:, None], box, 0)
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        return Mix(
            lam=jnp.where(is_cutmix, 1 - area / (height * width), lam),
            blend=jnp.where(is_cutmix, 1.0, lam),
            box=box,
        )

    mix: Mix = on_every_device(drawn)(key)
    return mix


def cutmix_box(
    lam: Float[Array, "G"],
    centre_y: Float[Array, "G"],
    centre_x: Float[Array, "G"],
    height: int,
    width: int,
) -> Int[Array, "G 4"]:
    """Returns the box that is pasted: the fraction 1 - lam of the image, clipped to it.

    Args:
        lam: as drawn, before the correction for the box's true area.
        centre_y: uniform in [0, 1), of the box.
        centre_x: uniform in [0, 1), of the box.
        height: of the images, pixels.
        width: of the images, pixels.

    Returns:
        top, bottom, left, right.
    """
    side = jnp.sqrt(1 - lam)
    ends = []
    for size, centre in ((height, centre_y), (width, centre_x)):
        half = (size * side).astype(jnp.int32) // 2
        middle = (size * centre).astype(jnp.int32)
        ends += [jnp.clip(middle - half, 0, size), jnp.clip(middle + half, 0, size)]
    return jnp.stack(ends, axis=1)


def apply(images: Float[Array, "B H W C"], mix: Mix) -> Float[Array, "B H W C"]:
    """Mixes every image with its partner.

    Args:
        images: normalised, floating point.
        mix: of this batch.

    Returns:
        The mixed images, in the type of `images`.
    """
    B, H, W, C = images.shape
    groups = mix.lam.shape[0]
    own = images.reshape(groups, B // groups, H, W, C)
    top, bottom, left, right = (mix.box[:, i, None, None] for i in range(4))
    y, x = jnp.arange(H)[:, None], jnp.arange(W)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)  # [G, H, W]
    share = jnp.where(inside, 0.0, mix.blend[:, None, None])[:, None, :, :, None]
    share = share.astype(images.dtype)
    return (own * share + own[:, ::-1] * (1 - share)).reshape(images.shape)


def mix_targets(
    labels: Int[Array, "B"], lam: Float[Array, "G"], num_classes: int, smoothing: float
) -> Float[Array, "B classes"]:
    """Returns the soft targets of a mixed batch, with label smoothing.

    A smoothed label is smoothing / num_classes for every class, plus 1 - smoothing for its own.

    Args:
        labels: of the images before mixing.
        lam: weight of the own label, per group; [1.0] if nothing is mixed.
        num_classes: K.
        smoothing: 0 to 1.

    Returns:
        float32 rows that sum to 1.
    """
    hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    smooth = hot * (1 - smoothing) + smoothing / num_classes
    own = smooth.reshape(lam.shape[0], -1, num_classes)
    share = lam[:, None, None]
    return (own * share + own[:, ::-1] * (1 - share)).reshape(hot.shape)
