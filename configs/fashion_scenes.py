"""Semantic segmentation with a small ViG-H: real training, no download, no GPU.

    python train.py --config=configs/fashion_scenes.py

The 64 x 64 scenes are composed of the Fashion-MNIST photographs that come with this project: two to
six products on a cluttered background. 4,000 scenes to train on and 500 held out use different
photographs. The task is to find the class of every pixel: one of ten products, or background.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.ade20k("vig_h_t")
    config.model.embed_dims = (32, 64, 96, 128)
    config.model.depths = (1, 1, 2, 1)
    config.model.num_heads = (1, 2, 3, 4)
    config.model.drop_path_rate = 0.0
    config.model.dtype = "float32"

    config.task.channels = 64
    config.task.aux_channels = 32
    config.task.reduce_zero_label = False  # label 0 is the background, a class like the others
    config.task.resize_scale = (64, 64)
    config.task.resize_ratio = (1.0, 1.0)
    config.task.photometric = False  # the scenes are tinted already
    config.task.eval_stride = 64

    config.data.source = "fashion_scenes"
    config.data.image_size = 64
    config.data.workers = 0

    config.optimizer.base_lr = 4e-3
    config.optimizer.warmup_lr = 1e-5
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.05

    config.train.batch_size = 16
    config.train.steps = 0
    config.train.epochs = 10
    config.train.ema_decay = 0.99
    config.train.log_every_steps = 125
    config.train.eval_every_steps = 0
    config.train.eval_every_epochs = 2
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    return config
