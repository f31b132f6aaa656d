"""Fine-tuning on any folder of images, from published weights or from a run of ours.

    python train.py --config=configs/finetune.py --config.data.path=/data/flowers \\
        --config.init_weights=vig_s.pth --workdir=runs/flowers

The folder holds train/<class>/*.jpg and val/<class>/*.jpg; the head is new, with as many outputs as
there are classes. Without a val folder, one fifth of /data/flowers/<class>/*.jpg is held out by
--config.data.split=stratified --config.data.val_fraction=0.2. Other weights:
--config.model.name=vig_b (that of the file or run). Larger images: --config.data.image_size=384.
Less to train: --config.optimizer.freeze=patch_embed,blocks_0. The values are a start for some
thousands of images, not tuned; docs/training.md says what to try.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_s")
    config.model.drop_path_rate = 0.1

    config.data.crop_scale = (0.25, 1.0)  # a small part may not show the class
    config.data.mixup_alpha = 0.0  # a short run has no time for mixtures; 0.8 for a long one
    config.data.cutmix_alpha = 0.0

    config.optimizer.base_lr = 5e-4  # per 256 images; of the head
    config.optimizer.warmup_lr = 1e-6
    config.optimizer.min_lr = 1e-6
    config.optimizer.lr_batch = 256
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.layer_decay = 0.75

    config.train.batch_size = 64
    config.train.epochs = 30
    config.train.ema_decay = 0.0  # over so few updates an average would still remember the new head
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 0  # with every evaluation is enough
    config.train.keep_checkpoints = 1  # and the best
    return config
