"""A linear probe: only a new head is trained, on the features of a frozen backbone.

    python train.py --config=configs/linear_probe.py --config.data.path=/data/flowers \\
        --config.init_weights=vig_s.pth --workdir=runs/flowers_probe

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. A linear probe measures the quality of
the features, and is the fastest classifier to train on few images. The values are a starting point,
not tuned.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_s")
    config.model.drop_path_rate = 0.0  # the backbone is not regularised

    config.data.crop_scale = (0.25, 1.0)
    config.data.rand_augment_layers = 0
    config.data.erase_probability = 0.0
    config.data.mixup_alpha = 0.0
    config.data.cutmix_alpha = 0.0

    config.optimizer.base_lr = 4e-3  # per 256 images
    config.optimizer.warmup_lr = 4e-4
    config.optimizer.min_lr = 0.0
    config.optimizer.lr_batch = 256
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.freeze = "backbone"

    config.train.batch_size = 64
    config.train.epochs = 30
    config.train.label_smoothing = 0.0
    config.train.ema_decay = 0.0
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    config.train.keep_checkpoints = 1  # besides the best
    return config
