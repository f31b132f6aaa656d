"""Typed settings of a run.

Recipe values are in `vig_jax.config.recipes`. A default here is neutral: it switches a feature off
or leaves the choice to the model or the data set. Configs that were stored before a field existed
get its default.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone and how it computes. `None` keeps the model's default."""

    name: str
    num_classes: int | None  # None: the number of the data set's classes
    img_size: int | None  # side in pixels that the position embedding is made for
    patch_size: int | None
    embed_dim: int | None  # plain models
    depth: int | None
    num_heads: int | tuple[int, ...] | None  # hierarchical: one per stage
    drop_path_rate: float | None
    dtype: Literal["float32", "bfloat16"]  # of the computation; parameters are float32
    gla_implementation: str | None  # None: the fastest on the device
    merge_scale: float | None = None  # on the sum of the two scan directions
    embed_dims: tuple[int, ...] | None = None  # hierarchical models, one per stage
    depths: tuple[int, ...] | None = None  # hierarchical models, one per stage
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Source and preprocessing of the images, on the host and then on the device."""

    source: str  # a name of vig_jax.data.datasets.registry
    path: str | None
    image_size: int  # side of the square training and evaluation images, pixels
    mean: tuple[float, float, float]  # red, green, blue, in units of [0, 1]
    std: tuple[float, float, float]
    crop: Literal["random_resized", "pad", "none"]
    crop_scale: tuple[float, float]  # fraction of the area ("random_resized")
    crop_ratio: tuple[float, float]  # width / height ("random_resized")
    crop_padding: int  # pixels each side before the random crop ("pad")
    hflip: float  # probability
    crop_pct: float  # evaluation: image_size / resized shorter side
    mixup_alpha: float  # 0: no mixup
    cutmix_alpha: float  # 0: no CutMix
    mixup_group: int  # images that share one draw of lambda
    workers: int  # processes; 0: threads of this process
    prefetch: int  # batches kept ready per worker
    max_bad_images: int  # the run stops above this many undecodable images
    split: Literal["given", "stratified"] = "given"  # "stratified": held out here, per class
    val_fraction: float = 0.0  # of each class ("stratified")
    split_seed: int = 0  # of that draw; independent of the run's seed, so that runs can be compared
    rand_augment_layers: int = 0  # operations per image, each with probability 1/2; 0: off
    rand_augment_magnitude: float = 0.0  # mean, 0 to 10
    rand_augment_std: float = 0.0  # standard deviation of the magnitude
    color_jitter: float = 0.0  # without RandAugment: strength on brightness, contrast, saturation
    erase_probability: float = 0.0  # of random erasing, per image
    # Implementation of decoding and resizing, all with the same pixels. "auto": numba if installed.
    resize: Literal["auto", "pillow", "numba"] = "auto"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. The three learning rates are per `lr_batch` images.

    Warm-up is set in one of its three units, and the other two are 0. All 0: no warm-up.
    """

    base_lr: float
    warmup_lr: float
    min_lr: float
    lr_batch: int
    warmup_epochs: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float  # of the global gradient; 0: no clipping
    warmup_steps: int = 0
    warmup_examples: int = 0
    layer_decay: float = 1.0  # learning rate of a layer relative to the layer above it
    freeze: str = ""  # untrained parameters: paths or globs; "backbone": all but the head


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, regularisation, evaluation and checkpoints of a run.

    The length and each interval are set in one of their units, and the others are 0. The length is
    required. An interval that is 0 in all units means only at the end.
    """

    batch_size: int  # global, of one update
    epochs: int
    label_smoothing: float
    ema_decay: float  # 0: no EMA weights
    log_every_steps: int
    eval_every_epochs: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    steps: int = 0  # updates
    examples: int = 0
    accumulation_steps: int = 1  # parts of the batch, computed in sequence
    eval_every_steps: int = 0
    eval_every_examples: int = 0
    checkpoint_every_epochs: int = 0
    checkpoint_every_examples: int = 0
    compilation_cache: str = ""  # folder of compiled programs; "": off


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task that a run trains. Tasks with settings derive a class from this one."""

    name: str = "classification"  # a name of vig_jax.tasks.registry


TASK_CONFIGS: dict[str, type[TaskConfig]] = {}
"""The class of `config.task` by the name of the task; tasks without settings are not listed."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    seed: int
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    init_weights: str | None = None  # weight file or run to start from; None: random parameters
    task: TaskConfig = TaskConfig()
