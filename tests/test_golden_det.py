"""The golden values of Mask R-CNN: the files agree with their settings."""

import numpy as np
import pytest

from tests import golden_det


def test_settings_describe_the_files():
    rpn, full, masks = (golden_det.load(name) for name in ("rpn", "full", "masks"))
    for level, size in enumerate(rpn.facts["levels"]):
        assert list(rpn.arrays[f"map{level}"].shape[2:]) == size
    assert full.arrays["w.bbox_head.fc_cls.bias"].shape == (full.facts["classes"] + 1,)
    assert len(masks.facts["rle"]) == len(masks.arrays["bitmaps"])


@pytest.mark.parametrize("case", golden_det.facts("matcher")["cases"])
def test_every_case_has_arrays(case):
    arrays = golden_det.load("matcher").below(f"{case}_")
    assert len(arrays["mm_rpn"]) == len(arrays["priors"])


def test_unpack():
    golden = golden_det.load("masks")
    height, width = golden.facts["image"]
    masks = golden_det.unpack(golden.arrays["bitmaps"], width)
    assert masks.shape[1:] == (height, width)
    np.testing.assert_array_equal(masks.sum((1, 2)), golden.facts["area"])
