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

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_s")
    config.model.drop_path_rate = 0.1

    config.data.crop_scale = (0.25, 1.0)  # smaller crops may not show the class
    config.data.mixup_alpha = 0.0  # mixing needs long runs; then 0.8
    config.data.cutmix_alpha = 0.0

    config.optimizer.base_lr = 5e-4  # per 256 images; of the head
    config.optimizer.warmup_lr = 1e-6
    config.optimizer.min_lr = 1e-6
    config.optimizer.lr_batch = 256
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.layer_decay = 0.75

    config.train.batch_size = 64
    config.train.epochs = 30
    config.train.ema_decay = 0.0  # too few updates: an EMA would still contain the random head
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    config.train.keep_checkpoints = 1  # besides the best
    return config
