"""ViG-H-T on ImageNet-1k: 28.6 M parameters, top-1 82.8 % in the paper.

    python train.py --config=configs/vig_h_t.py --config.data.path=/data/imagenet

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. The paper trains on eight GPUs of 128
images each; any number of devices that divides the batch works. The recipe is that of hustvl/ViG,
in bfloat16, where the original computes in float16 with a scaled loss.
`--config.model.remat=True` saves memory.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_h_t")
    config.model.drop_path_rate = 0.2
    config.optimizer.base_lr = 8e-4  # per 512 images
    config.optimizer.weight_decay = 0.05
    return config
