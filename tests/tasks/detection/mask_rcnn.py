"""Mask R-CNN's second stage on the golden case `full`, with the rules of each library."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests import golden_det
from tests.golden_seg import last, numbered
from tests.tasks.detection import given
from vig_jax.heads.roi import STRIDES, RoIHead, class_maps
from vig_jax.heads.select import DetectionSelector
from vig_jax.ops.mask_targets import TARGETS, mask_targets
from vig_jax.ops.matching import Matcher
from vig_jax.ops.roi_align import RoIAlign
from vig_jax.tasks.detection.losses import box_loss, mask_loss
from vig_jax.tasks.detection.targets import roi_targets


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of a library; `samples` as in `RoIAlign`."""

    library: str
    samples: int

    @property
    def matcher(self):
        if self.library == "mm":
            return Matcher(0.5, 0.5, least_low_quality=0.5)
        return Matcher(0.5, 0.5, low_quality="off")

    @property
    def selector(self):
        if self.library == "mm":
            return DetectionSelector(most_candidates=600)
        return DetectionSelector(most_candidates=600, least_side=1e-2, clamp_below=False)

    @property
    def beta(self):
        return 0.0 if self.library == "mm" else 1 / 9

    def align(self, side, extent):
        """Returns the pooling, enough for RoIs of up to `extent` positions."""
        aligned = self.library == "mm"
        return RoIAlign((side, side), self.samples, -(-extent // side), aligned, rois_at_once=40)


RULES = {"mm_s2": Rules("mm", 2), "mm_s0": Rules("mm", 0), "tv": Rules("tv", 2)}


class Case:
    """The arrays of `full` with padding.

    Attributes:
        objects, samples, bitmaps, candidates: of each image, with `padding` further rows.
    """

    def __init__(self, name, dtype, padding):
        self.golden, self.rules = golden_det.load("full"), RULES[name]
        self.dtype, self.padding = dtype, padding
        arrays, facts = self.golden.arrays, self.golden.facts
        self.params = golden_det.tree(self.golden.below("w."), dtype)
        self.maps = [jnp.asarray(last(x), dtype) for x in numbered(arrays, "map")]
        boxes, labels, proposals = (
            list(numbered(arrays, k)) for k in ("gt", "labels", "proposals")
        )
        self.images = len(boxes)
        count = max(map(len, boxes)) + padding
        self.objects = [given.truth(x, y, count, dtype) for x, y in zip(boxes, labels, strict=True)]
        sides = [len(arrays["pos0"]), len(arrays["neg0"])]
        self.positives = sides[0] + padding
        self.samples = [given.samples(arrays, f"{{}}{i}", sum(sides) + 2 * padding)
                        for i in range(self.images)]  # fmt: skip
        # The golden numbers of samples refer to the objects and proposals without padding.
        self.candidates = [np.concatenate(x) for x in zip(boxes, proposals, strict=True)]
        self.proposals = proposals
        # Of the size of each image: a sample just outside of a bitmap has the value at its border.
        self.bitmaps = [
            np.pad(255 * masks, ((0, count - len(masks)), (0, 0), (0, 0)))
            for masks in numbered(arrays, "masks")
        ]
        extent = max(facts["padded"])
        self.head = RoIHead(
            facts["classes"], facts["fc"], facts["mask_channels"],
            self.rules.align(7, extent // STRIDES[0]), self.rules.align(14, extent // STRIDES[0]),
            self.rules.library,
        )  # fmt: skip
        aligned = self.rules.library == "mm"
        most = -(-extent // TARGETS.size[0])
        self.target_align = dataclasses.replace(
            TARGETS, samples=0, most_samples=most, aligned=aligned
        )

    def losses(self, params, maps):
        """Returns the three losses, and the assignments and targets of each image."""
        facts, head = self.golden.facts, self.head.bind({"params": params})
        matches, targets, masks = [], [], []
        rows = zip(self.candidates, self.objects, self.samples, self.bitmaps, strict=True)
        for candidates, truth, samples, bitmaps in rows:
            candidates = jnp.asarray(candidates, self.dtype)
            found = self.rules.matcher(candidates, truth.boxes, truth.valid).assigned
            target = roi_targets(candidates, found, samples, truth, facts["classes"])
            matches.append(found)
            targets.append(target)
            rois, objects = target.rois[: self.positives], target.objects[: self.positives]
            masks.append(mask_targets(jnp.asarray(bitmaps), rois, objects, align=self.target_align))
        both = jax.tree.map(lambda *x: jnp.stack(x), *targets)
        masks = jnp.stack(masks)
        if self.rules.library == "mm":
            masks = masks >= 0.5
        flags = both.positive, both.valid
        boxes = head.boxes(maps, both.rois)
        classes, deltas = box_loss(*boxes, both.labels, both.deltas, *flags, self.rules.beta)
        first = slice(None), slice(self.positives)
        logits = head.masks(maps, both.rois[first])
        mask = mask_loss(logits, masks, both.labels[first], both.positive[first])
        return (classes, deltas, mask), (matches, both, masks)

    def gradients(self, params, maps):
        """Returns losses, assignments and targets, and the gradients of the sum."""

        def total(params, maps):
            losses, rest = self.losses(params, maps)
            return sum(losses), (losses, rest)

        (_, found), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(params, maps)
        return found, gradients

    def detections(self, params, maps):
        """Returns the detections and their mask logits."""
        head = self.head.bind({"params": params})
        count = max(map(len, self.proposals)) + self.padding
        rows = [np.pad(x, ((0, count - len(x)), (0, 0))) for x in self.proposals]
        proposals = jnp.asarray(np.stack(rows), self.dtype)
        valid = jnp.stack([jnp.arange(count) < len(x) for x in self.proposals])
        logits, deltas = head.boxes(maps, proposals)
        sizes = jnp.asarray(self.golden.facts["sizes"])
        found = jax.vmap(self.rules.selector)(logits, deltas, proposals, valid, sizes)
        return found, class_maps(head.masks(maps, found.boxes), found.labels)
