import numpy as np
import pytest

from tests import golden_det
from vig_jax.errors import DataSetError
from vig_jax.ops import rle
from vig_jax.ops.polygons import fill


def bitmaps():
    golden = golden_det.load("masks")
    return golden_det.unpack(golden.arrays["bitmaps"], golden.facts["image"][1])


def golden_rles():
    facts = golden_det.facts("masks")
    return [rle.from_coco(stored, *facts["image"]) for stored in facts["rle"]]


def test_polygons():
    facts = golden_det.facts("masks")
    for polygons, expected in zip(facts["polygons"], bitmaps(), strict=True):
        found = rle.decode(rle.from_coco(polygons, *facts["image"]))
        np.testing.assert_array_equal(found, expected)


def test_a_part_of_a_polygon_has_the_pixels_of_the_whole():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(-20, 60, (7, 2))
        whole = fill(points, 40, 50)
        left, top, right, bottom = 7, 5, 31, 40
        part = fill(points, bottom - top, right - left, (left, top))
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_polygons_in_a_region():
    """detectron2 moves the polygons of an object into a RoI and fills them there."""
    golden = golden_det.load("masks")
    expected = golden.arrays["d2_polygon_targets"]
    side = expected.shape[-1]
    for roi, index, target in zip(
        golden.arrays["proposals"], golden.arrays["index"], expected, strict=True
    ):
        scale = side / np.maximum(roi[2:] - roi[:2], 0.1)
        polygons = [np.reshape(p, (-1, 2)) for p in golden.facts["polygons"][index]]
        filled = [fill((p - roi[:2]) * scale, side, side) for p in polygons]
        np.testing.assert_array_equal(np.any(filled, 0), target)


def test_runs():
    facts = golden_det.facts("masks")
    stored = zip(facts["rle"], facts["rle_counts"], bitmaps(), strict=True)
    for compressed, counts, mask in stored:
        encoded = rle.encode(mask)
        assert encoded.counts.tolist() == counts
        assert rle.to_string(encoded) == compressed["counts"]
        for form in (compressed, {"size": compressed["size"], "counts": counts}):
            read = rle.from_coco(form, *facts["image"])
            np.testing.assert_array_equal(rle.decode(read), mask)


def test_areas_boxes_and_overlaps():
    facts, masks = golden_det.facts("masks"), golden_rles()
    assert [rle.area(mask) for mask in masks] == facts["area"]
    assert [list(rle.bounding_box(mask)) for mask in masks] == facts["bbox_xywh"]
    np.testing.assert_array_equal(rle.iou(masks, masks), facts["iou"])
    np.testing.assert_array_equal(rle.iou(masks, masks, [True] * len(masks)), facts["iou_crowd"])
    merged = [part for polygons in facts["polygons"] for part in polygons]
    assert rle.area(rle.from_coco(merged, *facts["image"])) == facts["merged_area"]


@pytest.mark.parametrize("fill_with", [0, 1])
def test_masks_of_one_value(fill_with):
    encoded = rle.encode(np.full((5, 7), fill_with))
    assert (rle.decode(encoded) == fill_with).all()
    read = rle.from_string(rle.to_string(encoded), 5, 7)
    np.testing.assert_array_equal(read.counts, encoded.counts)
    assert rle.bounding_box(encoded) == ((0, 0, 7, 5) if fill_with else (0, 0, 0, 0))


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (5, 9)])
@pytest.mark.parametrize("shape", [(3, 4), (8, 4), (8, 13), (0, 0)])
def test_parts_of_masks(share, place, shape):
    height, width = 8, 13
    part = np.random.default_rng(1).random(shape) < share
    part = part[: height - place[0], : width - place[1]]
    mask = np.zeros((height, width), bool)
    mask[place[0] : place[0] + part.shape[0], place[1] : place[1] + part.shape[1]] = part
    encoded = rle.encode_part(part, *place, height, width)
    np.testing.assert_array_equal(encoded.counts, rle.encode(mask).counts)


def test_random_masks_survive():
    rng = np.random.default_rng(0)
    for shape, share in (((40, 30), 0.5), ((300, 200), 0.01), ((1, 90), 0.3)):
        mask = rng.random(shape) < share
        read = rle.from_string(rle.to_string(rle.encode(mask)), *shape)
        np.testing.assert_array_equal(rle.decode(read), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1.0, 2, 3, 4]], "at least three points"),
        ([[1.0, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([], "must be a list of polygons"),
        ({"size": [4, 5], "counts": [20]}, "must be that of the image"),
        ({"size": [5, 4], "counts": [19]}, "add up to 19"),
        ({"size": [5, 4], "counts": "\n"}, "no compressed runs"),
        ({"size": [5, 4], "counts": ""}, "no compressed runs"),
    ],
)
def test_malformed_annotations(segmentation, message):
    with pytest.raises(DataSetError, match=message):
        rle.from_coco(segmentation, 5, 4)
