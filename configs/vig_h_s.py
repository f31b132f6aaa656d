"""ViG-H-S on ImageNet-1k: 50.1 M parameters, top-1 83.8 % in the paper.

    python train.py --config=configs/vig_h_s.py --config.data.path=/data/imagenet

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. The paper trains on eight GPUs of 128
images each; any number of devices that divides the batch works. The recipe is that of hustvl/ViG,
in bfloat16, where the original computes in float16 with a scaled loss.
`--config.model.remat=True` saves memory.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("vig_h_s")
