"""Detection and instance segmentation: Mask R-CNN on ViG-H-B on COCO, 12 epochs of batches of 16.

    python train.py --config=configs/coco_vig_h_b.py --config.init_weights=vig_h_b.pth \\
        --config.data.path=/data/coco --workdir=runs/coco_vig_h_b

`recipes.coco("vig_h_b", multi_scale=True)` has the settings of 36 epochs with images of many sizes.
docs/detection.md has the layout of the data, evaluation and prediction.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("coco_vig_h_b")
