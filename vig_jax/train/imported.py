"""Weight files as if a run of ours had trained them."""

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from vig_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig, parse
from vig_jax.config import to_dict
from vig_jax.convert import WeightsError
from vig_jax.convert.load import WeightFile, fit, read_weight_file
from vig_jax.data.imagenet import CLASS_NAMES
from vig_jax.models import ViG
from vig_jax.tasks.classification import make_model
from vig_jax.train.checkpoint import Restored
from vig_jax.tasks.protocol import Params

# What the published weights were trained and evaluated with (hustvl/ViG); the values of
# configs/common.py, which packages cannot import.
_DATA = DataConfig(
    source="image_folder",
    path=None,
    image_size=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop="random_resized",
    crop_scale=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
    crop_padding=0,
    hflip=0.5,
    crop_pct=0.875,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    mixup_group=128,
    workers=8,
    prefetch=2,
    max_bad_images=100,
)
_OPTIMIZER = OptimizerConfig(
    base_lr=1e-3,
    warmup_lr=5e-7,
    min_lr=5e-6,
    lr_batch=512,
    warmup_epochs=20.0,
    weight_decay=0.05,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    clip_norm=5.0,
)
_TRAIN = TrainConfig(
    batch_size=1024,
    epochs=300,
    label_smoothing=0.1,
    ema_decay=0.9999,
    log_every_steps=50,
    eval_every_epochs=1,
    checkpoint_every_steps=1000,
    keep_checkpoints=2,
)
_EVAL_MERGE_SCALE = 0.25  # of upstream's plain models: its evaluation halves the merged scan twice
