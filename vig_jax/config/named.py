"""The configs that `vig train --config=NAME` knows without a file; `configs/` has their pages."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from vig_jax.config import recipes
from vig_jax.errors import ConfigError
from vig_jax.text import did_you_mean


class Named(NamedTuple):
    """A named config.

    Attributes:
        description: one line for a list.
        make: returns the settings.
    """

    description: str
    make: Callable[[], ConfigDict]


def names() -> tuple[str, ...]:
    """Returns the names of all configs."""
    return tuple(NAMED)


def get_config(name: str) -> ConfigDict:
    """Returns the settings of a named config.

    Args:
        name: one of `names()`.

    Raises:
        ConfigError: there is no such config.
    """
    if name not in NAMED:
        raise ConfigError(f"{name!r} is not a config; {did_you_mean(name, names())}")
    return NAMED[name].make()


# Of the ImageNet runs: rate per 512 images, weight decay, drop path (hustvl/ViG configs/**/*.yaml).
_IMAGENET = {
    "vig_t": (1e-3, 0.05, 0.0),
    "vig_s": (5e-4, 0.1, 0.2),
    "vig_b": (1e-3, 0.05, 0.5),
    "vig_h_t": (8e-4, 0.05, 0.2),
    "vig_h_s": (5e-4, 0.05, 0.3),
    "vig_h_b": (5e-4, 0.05, 0.6),
}


def imagenet(name: str) -> ConfigDict:
    """Returns the settings of a model of the paper on ImageNet-1k.

    Args:
        name: one of `vig_jax.list_models()`.
    """
    config = recipes.imagenet(name)
    rate, weight_decay, drop_path = _IMAGENET[name]
    config.model.drop_path_rate = drop_path
    config.optimizer.base_lr = rate
    config.optimizer.weight_decay = weight_decay
    if name == "vig_b":
        config.data.mixup_group = 64  # images per GPU of the paper's run
    return config


def finetune() -> ConfigDict:
    """Returns a start for fine-tuning ViG-S on a few thousand images; the values are not tuned."""
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


def linear_probe() -> ConfigDict:
    """Returns a start for training a new head on a frozen ViG-S; the values are not tuned."""
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


def elpv() -> ConfigDict:
    """Returns the settings of ViG-T from scratch on 1,968 photographs; the values are not tuned."""
    config = recipes.imagenet("vig_t")
    config.model.drop_path_rate = 0.1

    config.data.source = "elpv"
    config.data.mean = (0.599, 0.599, 0.599)
    config.data.std = (0.161, 0.161, 0.161)
    config.data.crop_scale = (0.6, 1.0)  # cracks at the rim matter, too
    config.data.crop_ratio = (0.9, 1.1)
    config.data.crop_pct = 1.0  # evaluation sees the whole cell
    # Dark spots and inverted grays are what defects look like: only mild changes of tone.
    config.data.rand_augment_layers = 0
    config.data.color_jitter = 0.2
    config.data.erase_probability = 0.0
    config.data.mixup_alpha = 0.2
    config.data.cutmix_alpha = 0.0
    config.data.mixup_group = 32

    config.optimizer.base_lr = 5e-4
    config.optimizer.warmup_lr = 1e-6
    config.optimizer.min_lr = 1e-5
    config.optimizer.lr_batch = 64
    config.optimizer.warmup_epochs = 10.0

    config.train.batch_size = 64
    config.train.epochs = 150
    config.train.ema_decay = 0.999
    config.train.log_every_steps = 30
    config.train.eval_every_epochs = 5
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    return config


def fashion_mnist() -> ConfigDict:
    """Returns the settings of a small ViG on the embedded photographs of clothes."""
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


def _on_scenes(config: ConfigDict) -> ConfigDict:
    """Returns a dense recipe with a small ViG-H, on composed scenes of 64 x 64 pixels."""
    config.model.embed_dims = (32, 64, 96, 128)
    config.model.depths = (1, 1, 2, 1)
    config.model.num_heads = (1, 2, 3, 4)
    config.model.drop_path_rate = 0.0
    config.model.dtype = "float32"

    config.task.resize_scale = (64, 64)

    config.data.source = "fashion_scenes"
    config.data.image_size = 64  # of the scenes
    config.data.workers = 0

    config.optimizer.base_lr = 4e-3  # for 16 images
    config.optimizer.warmup_lr = 1e-5

    config.train.ema_decay = 0.99
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    return config


def fashion_scenes() -> ConfigDict:
    """Returns the settings of a small UperNet on composed scenes of 64 x 64 pixels."""
    config = _on_scenes(recipes.ade20k("vig_h_t"))

    config.task.channels = 64
    config.task.aux_channels = 32
    config.task.reduce_zero_label = False  # label 0 is the background, a class like the others
    config.task.resize_ratio = (1.0, 1.0)
    config.task.photometric = False  # the scenes are tinted already
    config.task.eval_stride = 64

    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.05

    config.train.batch_size = 16
    config.train.steps = 0
    config.train.epochs = 10
    config.train.log_every_steps = 125
    config.train.eval_every_steps = 0
    config.train.eval_every_epochs = 2
    return config


def fashion_detection() -> ConfigDict:
    """Returns the settings of a small Mask R-CNN on composed scenes of 64 x 64 pixels."""
    config = _on_scenes(recipes.coco("vig_h_t"))

    config.task.buckets = ((64, 64),)
    config.task.max_boxes = 6
    config.task.mask_side = 28
    config.task.channels = 32
    config.task.box_channels = 256
    config.task.anchor_scale = 3.0  # squares of 12, 24 and 48 pixels at the first three levels
    config.task.rpn_samples = 64
    config.task.proposals = 48
    config.task.train_level_proposals = 48
    config.task.eval_level_proposals = 48
    config.task.roi_samples = 24
    config.task.sampling_ratio = 1
    config.task.score_threshold = 0.01
    config.task.detections = 50

    config.optimizer.warmup_steps = 200
    config.optimizer.schedule = "cosine"
    config.optimizer.milestones = ()
    config.optimizer.weight_decay = 0.005

    config.train.batch_size = 8
    config.train.epochs = 12
    config.train.log_every_steps = 250
    config.train.eval_every_epochs = 6
    return config


_TITLES = {
    "vig_t": "ViG-T",
    "vig_s": "ViG-S",
    "vig_b": "ViG-B",
    "vig_h_t": "ViG-H-T",
    "vig_h_s": "ViG-H-S",
    "vig_h_b": "ViG-H-B",
}

NAMED: dict[str, Named] = {
    **{
        name: Named(f"{title} on ImageNet-1k", functools.partial(imagenet, name))
        for name, title in _TITLES.items()
    },
    **{
        f"ade20k_{name}": Named(
            f"UperNet on {title} on ADE20K", functools.partial(recipes.ade20k, name)
        )
        for name, title in _TITLES.items()
    },
    **{
        f"coco_{name}": Named(
            f"Mask R-CNN on {title} on COCO", functools.partial(recipes.coco, name)
        )
        for name, title in _TITLES.items()
    },
    "finetune": Named("fine-tuning on a folder of images", finetune),
    "linear_probe": Named("a new head on frozen features", linear_probe),
    "elpv": Named("solar cells, functional or defective: ViG-T from scratch", elpv),
    "fashion_mnist": Named(
        "a small ViG on embedded photographs: no download, no GPU", fashion_mnist
    ),
    "fashion_scenes": Named(
        "a small UperNet on embedded scenes: no download, no GPU", fashion_scenes
    ),
    "fashion_detection": Named(
        "a small Mask R-CNN on embedded scenes: no download, no GPU", fashion_detection
    ),
}
"""The configs by name."""
