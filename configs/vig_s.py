"""ViG-S on ImageNet-1k: 22.6 M parameters, top-1 81.7 % in the paper.

    python train.py --config=configs/vig_s.py --config.data.path=/data/imagenet

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. The paper trains on eight GPUs of 128
images each; any number of devices that divides the batch works. The recipe is that of hustvl/ViG.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("vig_s")
