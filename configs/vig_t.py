"""ViG-T on ImageNet-1k: 5.8 M parameters, top-1 77.2 % in the paper.

    python train.py --config=configs/vig_t.py --config.data.path=/data/imagenet

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. The paper trains on eight GPUs of 128
images each; any number of devices that divides the batch works. The recipe is that of hustvl/ViG.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_t")
    config.model.drop_path_rate = 0.0
    config.optimizer.base_lr = 1e-3  # per 512 images
    config.optimizer.weight_decay = 0.05
    return config
