"""Targets of a mask head: bitmaps of objects, sampled over regions."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vig_jax.ops.boxes import wide
from vig_jax.ops.roi_align import Maps, RoIAlign

TARGETS = RoIAlign((28, 28))


def mask_targets(
    bitmaps: Shaped[Array, "G h w"],
    rois: Float[Array, "R 4"],
    objects: Int[Array, " R"],
    boxes: Float[Array, "G 4"] | None = None,
    align: RoIAlign = TARGETS,
) -> Float[Array, "R H W"]:
    """Returns the share of each bin of a RoI that its object covers; compare it with 0.5.

    Args:
        bitmaps: masks of the objects of one image: 0 to 255 if they are integers, else 0 to 1.
        rois: x1, y1, x2, y2 in pixels of the image.
        objects: the object of each RoI.
        boxes: what the bitmaps cover, such as the boxes that `vig_jax.ops.paste.cut_to_box` has
            cut them to. A box without area counts as one pixel wide. None: the whole image.
        align: bins and samples. mmdet samples whole bitmaps adaptively.

    Returns:
        Values from 0 to 1 in float32 or wider.
    """
    count, height, width = bitmaps.shape
    rois = wide(rois)
    if boxes is not None:
        of_roi = wide(boxes)[objects]
        corner, size = of_roi[:, :2], of_roi[:, 2:] - of_roi[:, :2]
        scale = jnp.asarray([width, height], rois.dtype) / jnp.where(size > 0, size, 1)
        rois = jnp.concatenate([(rois[:, :2] - corner) * scale, (rois[:, 2:] - corner) * scale], 1)
    table = bitmaps.reshape(-1, 1).astype(rois.dtype)
    if jnp.issubdtype(bitmaps.dtype, jnp.integer):
        table = table / 255
    same = jnp.full_like(objects, height), jnp.full_like(objects, width), jnp.zeros_like(objects)
    maps = Maps(objects * (height * width), *same)
    return align.from_table(table, rois, maps, ((count * height, width),))[..., 0]
