"""Golden values of Mask R-CNN: numbers that mmdet, torchvision, detectron2, pycocotools computed.

`tests/golden_det/README.md` says how they were made. Tests take sizes, cases and settings from the
folder alone, so `pytest --golden-det DIR` runs them on another folder of this structure.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden_seg import Golden, hwio

# torchvision's names of the RPN head, whose arrays `rpn` holds, and mmdet's.
_RPN_NAMES = {"conv.0.0": "rpn_conv", "cls_logits": "rpn_cls", "bbox_pred": "rpn_reg"}
_LINEAR = {"rpn_cls", "rpn_reg", "conv_logits"}  # 1x1 convolutions that are linear maps here

DEFAULT = Path(__file__).parent / "golden_det"
_folder = DEFAULT


def use(folder: Path) -> None:
    """Sets the folder that `load` reads; `tests/conftest.py` calls it before collection."""
    global _folder
    _folder = folder


@functools.cache
def _facts(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@functools.cache
def _load(folder: Path, name: str) -> Golden:
    with np.load(folder / f"{name}.npz") as arrays:
        return Golden(_facts(folder, name), dict(arrays))


def facts(name: str) -> Any:
    """Returns the content of NAME.json, for parametrising tests."""
    return _facts(_folder, name)


def load(name: str) -> Golden:
    """Returns what NAME.json and NAME.npz hold. The same objects at each call: do not write."""
    return _load(_folder, name)


def unpack(bits: np.ndarray, width: int) -> np.ndarray:
    """Returns packed masks [..., rows, bytes] as booleans [..., rows, width]."""
    return np.unpackbits(bits, axis=-1)[..., :width].astype(bool)


def tree(arrays: dict[str, np.ndarray], dtype: Any) -> dict[str, Any]:
    """Returns parameters or gradients as nested dictionaries of this project's names and layouts.

    Args:
        arrays: by the names of mmdet, detectron2, or torchvision, such as those of
            `Golden.below("w.")`.
        dtype: dtype of the result.
    """
    result: dict[str, Any] = {}
    for name, x in arrays.items():
        for foreign, own in _RPN_NAMES.items():
            name = name.replace(foreign, own)
        *path, kind = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        if kind == "weight":
            kind = "kernel" if x.ndim > 1 else "scale"
            x = _kernel(path[-1], x)
        at = result
        for part in path:
            at = at.setdefault(part, {})
        at[kind] = x.astype(dtype)
    return result


def _kernel(layer: str, x: np.ndarray) -> np.ndarray:
    if x.ndim == 4 and x.shape[2:] == (2, 2):  # a transposed convolution
        return np.transpose(x, (0, 2, 3, 1))
    if x.ndim == 4:
        return hwio(x)[0, 0] if layer in _LINEAR else hwio(x)
    if layer == "shared_fcs_0":  # reads [C, 7, 7] in torch, [7, 7, C] here
        x = np.moveaxis(x.reshape(len(x), -1, 7, 7), 1, -1).reshape(len(x), -1)
    return x.T
