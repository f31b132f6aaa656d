"""Semantic segmentation: UperNet on ViG-B on ADE20K, 160,000 updates of 16 crops of 512 x 512.

    python train.py --config=configs/ade20k_vig_b.py --config.init_weights=vig_b.pth \\
        --config.data.path=/data/ADEChallengeData2016 --workdir=runs/ade20k_vig_b

docs/segmentation.md has the layout of the data, evaluation and prediction.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("ade20k_vig_b")
