"""What a data source gives for one index."""

from typing import TypedDict

import numpy as np


class Example(TypedDict):
    """One labelled image: encoded bytes of a file, or a uint8 RGB array [H, W, 3]."""

    image: bytes | np.ndarray
    label: int
