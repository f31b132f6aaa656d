"""Detection and instance segmentation: a ViG backbone with Mask R-CNN's neck and heads."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vig_jax.errors import ConfigError
from vig_jax.heads.fpn import FPN, STRIDES
from vig_jax.heads.roi import RoIHead, class_maps
from vig_jax.heads.rpn import AnchorPredictions, RPNHead
from vig_jax.heads.select import DetectionSelector, Proposals, ProposalSelector
from vig_jax.heads.simple_pyramid import SimplePyramid
from vig_jax.models.backbone import FeatureInfo, Sizes
from vig_jax.models.dense import DenseModel, create_dense_model
from vig_jax.models.vig import ViG
from vig_jax.models.vig_h import ViGH
from vig_jax.ops.anchors import AnchorGenerator
from vig_jax.ops.roi_align import RoIAlign
from vig_jax.sharding.per_image import per_image

WHOLE_CELLS = 32  # pixels: the largest stride of a backbone
PATCH_SIZE = 16  # pixels: what the pyramid of plain models is made for
IMAGES_AT_ONCE = 2  # of a device, where all pairs of boxes of an image are compared

Size = tuple[int, int]  # rows, columns


class Detections(NamedTuple):
    """Found objects of each image, by falling score, padded.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the padded images, float32; 0 in padding.
        scores: probabilities, float32; 0 in padding.
        classes: 0 to K - 1; -1 in padding.
        masks: logits of the class's mask, cut to the box; None for models without masks.
        candidates: see `vig_jax.heads.select.Detections`.
    """

    boxes: Float[Array, "B D 4"]
    scores: Float[Array, "B D"]
    classes: Int[Array, "B D"]
    masks: Float[Array, "B D h w"] | None
    candidates: Int[Array, " B"]


class Detector(DenseModel):
    """Mask R-CNN on ViG.

    Hierarchical models have an FPN. Plain models have a simple pyramid on the residual stream after
    the last block, without the final norm. Sources: "Mask R-CNN" (ICCV 2017) with mmdet's
    conventions; for plain models ViTDet and Vim.

    Images are padded on the right and below to one size. The padding has no influence: maps,
    proposals and detections are those of the image alone, up to its next multiple of 32 pixels.

    Attributes:
        backbone: a model without head, num_classes=0; hierarchical ones with out_norms=True.
        num_classes: number of classes K.
        masks: instance segmentation; False: boxes alone.
        channels: width of the pyramid, the RPN head and the mask head.
        box_channels: width of the box head.
        anchor_scale: side of a square anchor over the stride.
        anchor_ratios: height over width of the anchors.
        sampling_ratio: samples of RoIAlign along a side of a bin.
        proposals: of an image.
        level_proposals: best anchors of a level before their suppression, in `detect`.
        rpn_nms: IoU above which a proposal suppresses another.
        score_threshold: least probability of a detection, itself excluded.
        nms: IoU above which a detection suppresses another of its class.
        detections: of an image.
        candidates: pairs of a proposal and a class that are compared for the suppression.
    """

    num_classes: int = 80
    masks: bool = True
    channels: int = 256
    box_channels: int = 1024
    anchor_scale: float = 8.0
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    sampling_ratio: int = 2
    proposals: int = 1000
    level_proposals: int = 1000
    rpn_nms: float = 0.7
    score_threshold: float = 0.05
    nms: float = 0.5
    detections: int = 100
    candidates: int = 5000

    def __post_init__(self) -> None:
        counts = ("num_classes", "channels", "box_channels", "sampling_ratio", "proposals")
        for name in (*counts, "level_proposals", "detections", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        ratios = tuple(self.anchor_ratios)
        if not ratios or min(*ratios, self.anchor_scale) <= 0:
            raise ConfigError(
                f"anchor_scale={self.anchor_scale} and anchor_ratios={ratios} must be positive, "
                "with at least one ratio"
            )
        self.anchor_ratios = ratios  # jit needs a hash, which a list lacks
        if isinstance(self.backbone, ViG) and self.backbone.patch_size != PATCH_SIZE:
            raise ConfigError(
                f"patch_size={self.backbone.patch_size} must be {PATCH_SIZE}: the pyramid of plain "
                "models begins at this stride"
            )
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of the maps of the pyramid."""
        return tuple(FeatureInfo(self.channels, stride, "neck") for stride in STRIDES)

    @property
    def smallest_size(self) -> int:
        """Smallest image side in pixels."""
        return WHOLE_CELLS

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """First names of the parameter paths that are not the backbone."""
        return ("neck", "rpn_head", "roi_head")

    @property
    def anchors(self) -> AnchorGenerator:
        """Makes the anchors."""
        return AnchorGenerator(STRIDES, self.anchor_scale, tuple(self.anchor_ratios))

    @property
    def box_align(self) -> RoIAlign:
        """Pools regions for the box head."""
        return RoIAlign((7, 7), self.sampling_ratio)

    @property
    def mask_align(self) -> RoIAlign:
        """Pools regions for the mask head."""
        return RoIAlign((14, 14), self.sampling_ratio)

    def setup(self) -> None:
        dtypes = {"dtype": self.backbone.dtype, "param_dtype": self.backbone.param_dtype}
        neck: Callable[..., Any] = SimplePyramid if isinstance(self.backbone, ViG) else FPN
        self.neck = neck(self.channels, **dtypes)
        self.rpn_head = RPNHead(len(self.anchor_ratios), self.channels, **dtypes)
        self.roi_head = RoIHead(
            self.num_classes,
            self.box_channels,
            self.channels,
            self.box_align,
            self.mask_align,
            **dtypes,
        )

    def __call__(
        self, images: Float[Array, "B H W in_chans"], sizes: Sizes | None = None
    ) -> Detections | None:
        """Returns `detect(images, sizes)`; nothing while parameters are initialised."""
        if not self.is_initializing():
            return self.detect(images, sizes)
        maps = self.features(images, sizes=sizes)
        rois = jnp.zeros((len(images), 1, 4))
        self.rpn_head(maps)
        self.roi_head.boxes(maps, rois)
        if self.masks:
            self.roi_head.masks(maps, rois)
        return None

    def features(
        self,
        images: Float[Array, "B H W in_chans"],
        *,
        out_indices: Sequence[int] | None = None,
        train: bool = False,
        sizes: Sizes | None = None,
        padded_right: bool = True,
    ) -> tuple[Float[Array, "B _ _ C"], ...]:
        """Returns the pyramid, maps of strides 4, 8, 16, 32 and 64.

        Args:
            images: normalised pixels; height and width are multiples of 32. The pixels between
                the image and its next multiple of 32 must be 0, others may be anything.
            out_indices: the maps to return; None means all five.
            train: enables drop path, which needs `rngs={"dropout": key}`.
            sizes: height and width of each image in pixels; 0 for a row without an image. None:
                nothing is padded.
            padded_right: False promises that no image is padded by 32 pixels or more on the
                right.

        Raises:
            ValueError: the images are not [B, H, W, in_chans] floats, or (ConfigError) their sides
                no multiples of 32.
        """
        if wrong := [side for side in images.shape[1:3] if side % WHOLE_CELLS or not side]:
            raise ConfigError(
                f"images have a side of {wrong[0]} pixels; it must be a multiple of {WHOLE_CELLS}: "
                "pad them with zeros on the right and below, and pass their sizes"
            )
        valid = None if sizes is None else whole_cells(jnp.asarray(sizes))
        options: dict[str, Any] = {"train": train, "sizes": valid, "padded_right": padded_right}
        if isinstance(self.backbone, ViGH):
            maps = self.neck(self.backbone.features(images, **options), valid)
        else:
            (stream,) = self.backbone.features(images, norm_last=False, **options)
            maps = self.neck(stream, valid)
        return maps if out_indices is None else tuple(maps[i] for i in out_indices)

    def anchor_predictions(
        self, maps: Sequence[Float[Array, "B _ _ C"]]
    ) -> tuple[AnchorPredictions, ...]:
        """Returns the predictions for the anchors of each level.

        Args:
            maps: from `features`.
        """
        predictions: tuple[AnchorPredictions, ...] = self.rpn_head(maps)
        return predictions

    def region_predictions(
        self,
        maps: Sequence[Float[Array, "B _ _ C"]],
        rois: Float[Array, "B R 4"],
        sizes: Int[Array, "B 2"],
    ) -> tuple[Float[Array, "B R classes"], Float[Array, "B R K 4"]]:
        """Returns logits of regions, the background last, and deltas for each class.

        Args:
            maps: from `features`.
            rois: x1, y1, x2, y2 in pixels of the padded images.
            sizes: height and width of each image in pixels.
        """
        predictions: tuple[jax.Array, jax.Array] = self.roi_head.boxes(
            maps, rois, whole_cells(sizes)
        )
        return predictions

    def region_masks(
        self,
        maps: Sequence[Float[Array, "B _ _ C"]],
        rois: Float[Array, "B R 4"],
        sizes: Int[Array, "B 2"],
    ) -> Float[Array, "B R h w K"]:
        """Returns mask logits of regions for each class; see `region_predictions`."""
        logits: jax.Array = self.roi_head.masks(maps, rois, whole_cells(sizes))
        return logits

    def select_proposals(
        self,
        predictions: Sequence[AnchorPredictions],
        canvas: Size,
        sizes: Int[Array, "B 2"],
        level_proposals: int | None = None,
    ) -> Proposals:
        """Returns the proposals of each image; they have no gradient. Uses no parameters.

        Anchors of positions outside of an image's next multiple of 32 pixels are left out.

        Args:
            predictions: from `anchor_predictions`.
            canvas: height and width of the padded images.
            sizes: height and width of each image in pixels.
            level_proposals: best anchors of a level before their suppression; None: the model's.
        """
        per_level = self.level_proposals if level_proposals is None else level_proposals
        selector = ProposalSelector(per_level, self.proposals, self.rpn_nms)
        grids = map_sizes(canvas)

        def of_image(logits: Any, deltas: Any, size: jax.Array) -> Proposals:
            inside = self.anchors.valid(grids, whole_cells(size))
            scores = [jnp.where(x, y, -jnp.inf) for x, y in zip(inside, logits, strict=True)]
            return selector(scores, deltas, self.anchors.boxes(grids), size)

        levels = jax.lax.stop_gradient(tuple(predictions))
        found: Proposals = per_image(of_image, IMAGES_AT_ONCE)(
            tuple(x.logits for x in levels), tuple(x.deltas for x in levels), sizes
        )
        return found

    def detect(
        self, images: Float[Array, "B H W in_chans"], sizes: Sizes | None = None
    ) -> Detections:
        """Returns the detections of each image.

        Args:
            images: as for `features`.
            sizes: as for `features`.
        """
        canvas = (images.shape[1], images.shape[2])
        maps = self.features(images, sizes=sizes)
        if sizes is None:
            sizes = jnp.full((len(images), 2), jnp.asarray(canvas, jnp.int32))
        sizes = jnp.asarray(sizes)
        proposals = self.select_proposals(self.rpn_head(maps), canvas, sizes)
        logits, deltas = self.region_predictions(maps, proposals.boxes, sizes)
        selector = DetectionSelector(
            self.score_threshold, self.nms, self.detections, self.candidates
        )
        select = per_image(selector, IMAGES_AT_ONCE)
        found = select(logits, deltas, proposals.boxes, proposals.valid, sizes)
        masks = None
        if self.masks:
            masks = class_maps(self.region_masks(maps, found.boxes, sizes), found.labels)
        return Detections(found.boxes, found.scores, found.labels, masks, found.candidates)


def whole_cells(sizes: Int[Array, "*B 2"]) -> Int[Array, "*B 2"]:
    """Returns sizes in pixels, rounded up to multiples of 32."""
    return -(-sizes // WHOLE_CELLS) * WHOLE_CELLS


def map_sizes(canvas: Size) -> tuple[Size, ...]:
    """Returns rows and columns of each map of the pyramid for padded images of a size."""
    return tuple((-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in STRIDES)


def create_detector(name: str, num_classes: int = 80, **overrides: Any) -> Detector:
    """Builds a model for detection and instance segmentation by the name of its backbone.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes, without background.
        **overrides: fields of `vig_jax.models.Detector` or of its backbone; see `create_model`.
            Hierarchical backbones have out_norms=True if it is not given.

    Returns:
        A `flax.linen` module; `model.apply(variables, images, sizes)` returns `Detections`.

    Raises:
        ConfigError: unknown name or field; the message suggests the nearest ones.
    """
    return create_dense_model(Detector, name, num_classes, overrides)
