"""The golden values of segmentation: the files agree with their index."""

import numpy as np

from tests import golden_seg


def test_index_describes_the_files():
    golden = golden_seg.load("heads_forward")
    described = golden.facts["arrays"]
    assert {k: [str(x.dtype), list(x.shape)] for k, x in golden.arrays.items()} == described


def test_relative_error():
    expected = np.array([2.0, -4.0])
    assert golden_seg.relative_error([2.0, -5.0], expected) == 0.25
    assert golden_seg.relative_error([np.nan, -4.0], expected) == np.inf
    assert golden_seg.relative_error([1.0], np.zeros(1)) == np.inf
    assert golden_seg.relative_error([1e-6], np.zeros(1), floor=1e-3) == 1e-3
