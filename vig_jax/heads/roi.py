"""RoIHead: classes, boxes and masks of regions of a feature pyramid."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vig_jax.heads.classification import wide_dense
from vig_jax.heads.fpn import xavier
from vig_jax.heads.pyramid import Deconv
from vig_jax.layers.conv import ConvUnit
from vig_jax.layers.conv_module import kaiming_normal
from vig_jax.layers.linear import Dtype, dense
from vig_jax.ops.boxes import Stds
from vig_jax.ops.roi_align import RoIAlign, box_levels
from vig_jax.sharding.per_image import per_device

STRIDES = (4, 8, 16, 32)  # of the maps that regions are pooled from
BOX_STDS: Stds = (0.1, 0.1, 0.2, 0.2)  # of the box head's deltas
DENSE_LAYERS, MASK_CONVS = 2, 4


class BoxHead(nn.Module):
    """Classes and deltas of pooled regions: two linear maps with ReLU, then one for each.

    The first map reads rows, columns, channels in this order; mmdet's reads channels first.
    Source: mmdet `models/roi_heads/bbox_heads/convfc_bbox_head.py`; parameters have its names.

    Attributes:
        num_classes: number of classes K; the last logit is the background.
        channels: width of the hidden layers.
        dtype: dtype of the hidden layers; None promotes features and kernels. The results are
            float32 or wider.
        param_dtype: dtype of the parameters.
    """

    num_classes: int
    channels: int = 1024
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        hidden = self.channels, xavier, self.dtype, self.param_dtype
        self.shared_fcs = [dense(*hidden) for _ in range(DENSE_LAYERS)]
        normal = nn.initializers.normal
        self.fc_cls = wide_dense(self.num_classes + 1, normal(0.01), self.param_dtype)
        self.fc_reg = wide_dense(4 * self.num_classes, normal(0.001), self.param_dtype)

    def __call__(
        self, x: Float[Array, "*N h w C"]
    ) -> tuple[Float[Array, "*N classes"], Float[Array, "*N K 4"]]:
        """Returns logits, the background last, and deltas for each class."""
        x = x.reshape(*x.shape[:-3], -1)
        for layer in self.shared_fcs:
            x = nn.relu(layer(x))
        deltas = self.fc_reg(x)
        return self.fc_cls(x), deltas.reshape(*deltas.shape[:-1], self.num_classes, 4)


class MaskHead(nn.Module):
    """Mask logits of pooled regions: four 3x3 convolutions, enlarging by 2, a linear map.

    ReLU follows all but the last. Source: mmdet `models/roi_heads/mask_heads/fcn_mask_head.py`,
    whose names the parameters have.

    Attributes:
        num_classes: number of classes K.
        channels: width of the hidden maps.
        dtype, param_dtype: see `BoxHead`.
    """

    num_classes: int
    channels: int = 256
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = self.dtype, self.param_dtype
        convs = [ConvUnit(self.channels, 3, kaiming_normal, *dtypes) for _ in range(MASK_CONVS)]
        self.convs = convs
        self.upsample = Deconv(*dtypes, self.channels, kaiming=True)
        self.conv_logits = wide_dense(self.num_classes, kaiming_normal, self.param_dtype)

    def __call__(self, x: Float[Array, "B R h w C"]) -> Float[Array, "B R h2 w2 K"]:
        """Returns a map of logits for each class."""
        batch = x.shape[:2]
        x = x.reshape(-1, *x.shape[2:])
        for conv in self.convs:
            x = nn.relu(conv(x))
        logits = self.conv_logits(nn.relu(self.upsample(x)))
        return logits.reshape(*batch, *logits.shape[1:])


class RoIHead(nn.Module):
    """Box head and mask head on regions of a pyramid.

    Attributes:
        num_classes: number of classes K.
        box_channels: width of the box head.
        mask_channels: width of the mask head.
        box_align: pooling for boxes.
        mask_align: pooling for masks; their maps have twice its rows and columns of bins.
        level_rule: see `vig_jax.ops.roi_align.box_levels`.
        dtype, param_dtype: see `BoxHead`.
    """

    num_classes: int
    box_channels: int = 1024
    mask_channels: int = 256
    box_align: RoIAlign = RoIAlign((7, 7))
    mask_align: RoIAlign = RoIAlign((14, 14))
    level_rule: str = "mm"
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = self.dtype, self.param_dtype
        self.bbox_head = BoxHead(self.num_classes, self.box_channels, *dtypes)
        self.mask_head = MaskHead(self.num_classes, self.mask_channels, *dtypes)

    def __call__(
        self, maps: Sequence[Float[Array, "B _ _ C"]], rois: Float[Array, "B R 4"]
    ) -> tuple[Float[Array, "B R classes"], Float[Array, "B R K 4"], Float[Array, "B R h w K"]]:
        """Returns logits, deltas and mask logits of the same regions, for initialisation."""
        return *self.boxes(maps, rois), self.masks(maps, rois)

    def boxes(
        self,
        maps: Sequence[Float[Array, "B _ _ C"]],
        rois: Float[Array, "B R 4"],
        sizes: Int[Array, "B 2"] | None = None,
    ) -> tuple[Float[Array, "B R classes"], Float[Array, "B R K 4"]]:
        """Returns logits, the background last, and deltas for each class.

        Args:
            maps: the pyramid, fine to coarse; maps after the fourth are not used.
            rois: x1, y1, x2, y2 in pixels.
            sizes: see `RoIAlign`.
        """
        return self.bbox_head(self._pool(self.box_align, maps, rois, sizes))

    def masks(
        self,
        maps: Sequence[Float[Array, "B _ _ C"]],
        rois: Float[Array, "B R 4"],
        sizes: Int[Array, "B 2"] | None = None,
    ) -> Float[Array, "B R h w K"]:
        """Returns a map of mask logits for each region and class; see `boxes`."""
        return self.mask_head(self._pool(self.mask_align, maps, rois, sizes))

    def _pool(
        self, align: RoIAlign, maps: Sequence[Array], rois: Array, sizes: Array | None
    ) -> Array:
        @per_device
        def pool(maps: Sequence[Array], rois: Array, sizes: Array | None) -> Array:
            levels = box_levels(rois, len(STRIDES), self.level_rule)
            return align(maps, rois, levels, STRIDES, sizes)

        pooled: Array = pool(tuple(maps[: len(STRIDES)]), rois, sizes)
        return pooled


def class_maps(
    logits: Float[Array, "*N h w K"], labels: Int[Array, "*N"]
) -> Float[Array, "*N h w"]:
    """Returns the map of one class of each region.

    Args:
        logits: a map for each class.
        labels: 0 to K - 1. Others, such as those of padding, give the map of the nearest class.
    """
    own = jnp.clip(labels, 0, logits.shape[-1] - 1)[..., None, None, None]
    return jnp.take_along_axis(logits, own, axis=-1)[..., 0]
