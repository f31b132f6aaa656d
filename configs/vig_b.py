"""ViG-B on ImageNet-1k: 89.0 M parameters, top-1 82.6 % in the paper.

    python train.py --config=configs/vig_b.py --config.data.path=/data/imagenet

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. The paper trains on sixteen GPUs of 64
images each; any number of devices that divides the batch works. The recipe is that of hustvl/ViG.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_b")
    config.model.drop_path_rate = 0.5
    config.optimizer.base_lr = 1e-3  # per 512 images
    config.optimizer.weight_decay = 0.05
    config.data.mixup_group = 64  # images per GPU of the paper's run
    return config
