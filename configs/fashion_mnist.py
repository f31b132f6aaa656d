"""A small ViG on the images that come with this project: real training, no download, no GPU.

    python train.py --config=configs/fashion_mnist.py

Fashion-MNIST's 10,000 test images, split into 8,000 to train on and 2,000 held out. Expect a top-1
of 87 to 88 % on these.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_t")
    config.model.img_size = 28
    config.model.patch_size = 4  # 7 x 7 tokens
    config.model.embed_dim = 64
    config.model.depth = 2
    config.model.num_heads = 2
    config.model.dtype = "float32"

    config.data.source = "fashion_mnist"
    config.data.image_size = 28
    config.data.mean = (0.286, 0.286, 0.286)
    config.data.std = (0.353, 0.353, 0.353)
    config.data.crop = "pad"
    config.data.crop_padding = 1
    config.data.crop_pct = 1.0
    config.data.rand_augment_layers = 0
    config.data.erase_probability = 0.0
    config.data.mixup_alpha = 0.0
    config.data.cutmix_alpha = 0.0
    config.data.workers = 0

    config.optimizer.base_lr = 4e-3
    config.optimizer.lr_batch = 32
    config.optimizer.warmup_epochs = 1.0

    config.train.batch_size = 32
    config.train.epochs = 15
    config.train.label_smoothing = 0.05
    config.train.ema_decay = 0.99
    config.train.log_every_steps = 125
    config.train.eval_every_epochs = 3
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    return config
