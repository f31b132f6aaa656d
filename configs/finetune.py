"""Fine-tuning on any folder of images, from published weights or from a run of ours.

    python train.py --config=configs/finetune.py --config.data.path=/data/flowers \\
        --config.init_weights=vig_s.pth --workdir=runs/flowers

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. The head is new, with one output per
class. Without a val folder, hold out a fifth of /data/flowers/<class>/*.jpg with
--config.data.split=stratified --config.data.val_fraction=0.2. For the weights of another model set
--config.model.name=vig_b, for larger images --config.data.image_size=384, to train fewer layers
--config.optimizer.freeze=patch_embed,blocks_0. The values are a starting point for a few thousand
images, not tuned; docs/training.md has advice.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("finetune")
