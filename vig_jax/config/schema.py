"""Typed settings of a run.

Recipe values are in `vig_jax.config.recipes`. A default here is neutral: it switches a feature off
or leaves the choice to the model or the data set. Configs that were stored before a field existed
get its default.
"""

import dataclasses
import math
from typing import Annotated, Literal


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of a number, checked by `vig_jax.config.parse`.

    Attributes:
        low: the smallest value.
        high: the largest value.
        above: the value must be greater than `low`, not equal to it.
        below: the value must be less than `high`, not equal to it.
    """

    low: float | int
    high: float | int = math.inf
    above: bool = False
    below: bool = False

    def contains(self, value: float | int) -> bool:
        """Returns whether a number is in the range; NaN never is."""
        lower = value > self.low if self.above else value >= self.low
        return lower and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        lower = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        if self.high == math.inf:
            return lower
        return f"{lower} and {'below' if self.below else 'at most'} {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Ascending:
    """Marks a pair whose first number must not exceed its second."""


Count = Annotated[int, Bounds(0)]
PositiveInt = Annotated[int, Bounds(1)]
Seed = Annotated[int, Bounds(0, 2**63 - 1)]
NonNegative = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(0, above=True)]
Probability = Annotated[float, Bounds(0, 1)]
Decay = Annotated[float, Bounds(0, 1, below=True)]  # of a moving average
Fraction = Annotated[float, Bounds(0, 1, below=True)]  # less than all
Share = Annotated[float, Bounds(0, 1, above=True)]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone and how it computes. `None` keeps the model's default."""

    name: str
    num_classes: PositiveInt | None  # None: the number of the data set's classes
    img_size: PositiveInt | None  # side in pixels that the position embedding is made for
    patch_size: PositiveInt | None
    embed_dim: PositiveInt | None  # plain models
    depth: PositiveInt | None
    num_heads: PositiveInt | tuple[PositiveInt, ...] | None  # hierarchical: one per stage
    drop_path_rate: Fraction | None
    dtype: Literal["float32", "bfloat16"]  # of the computation; parameters are float32
    gla_implementation: str | None  # None: the fastest on the device
    merge_scale: Positive | None = None  # on the sum of the two scan directions
    embed_dims: tuple[PositiveInt, ...] | None = None  # hierarchical models, one per stage
    depths: tuple[PositiveInt, ...] | None = None  # hierarchical models, one per stage
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Source and preprocessing of the images, on the host and then on the device."""

    source: str  # a name of vig_jax.data.datasets.registry
    path: str | None
    image_size: PositiveInt  # side of the square training and evaluation images, pixels
    mean: tuple[Probability, Probability, Probability]  # red, green, blue, in units of [0, 1]
    std: tuple[Positive, Positive, Positive]
    crop: Literal["random_resized", "pad", "none"]
    # Of "random_resized": fraction of the area, and width / height.
    crop_scale: Annotated[tuple[Share, Share], Ascending()]
    crop_ratio: Annotated[tuple[Positive, Positive], Ascending()]
    crop_padding: Count  # pixels each side before the random crop ("pad")
    hflip: Probability
    crop_pct: Share  # evaluation: image_size / resized shorter side
    mixup_alpha: NonNegative  # 0: no mixup
    cutmix_alpha: NonNegative  # 0: no CutMix
    mixup_group: PositiveInt  # images that share one draw of lambda
    workers: Count  # processes; 0: threads of this process
    prefetch: Count  # batches kept ready per worker
    max_bad_images: Count  # the run stops above this many undecodable images
    # Height and width of the evaluation images if they are not square; None: image_size.
    eval_size: tuple[PositiveInt, PositiveInt] | None = None
    # Of a plain classifier: images keep their size and aspect, and share rows of tokens.
    native_sizes: bool = False
    max_tokens: Count = 0  # of an image, with native_sizes; 0: those of image_size
    row_images: PositiveInt = 8  # images that share a row of tokens
    row_tokens: Count = 0  # of a row; 0: row_images * max_tokens
    # Held out here: per class ("stratified"), or of all images ("random", for masks).
    split: Literal["given", "stratified", "random"] = "given"
    val_fraction: Fraction = 0.0  # of each class ("stratified") or of all images ("random")
    split_seed: Seed = 0  # of that draw, not the run's seed: runs can be compared
    rand_augment_layers: Count = 0  # operations per image, each with probability 1/2; 0: off
    rand_augment_magnitude: Annotated[float, Bounds(0, 10)] = 0.0  # mean
    rand_augment_std: NonNegative = 0.0  # standard deviation of the magnitude
    augmentations: tuple[str, ...] = ()  # names of vig_jax.augment.registry, applied first
    color_jitter: Probability = 0.0  # brightness, contrast, saturation; without RandAugment
    erase_probability: Probability = 0.0  # of random erasing, per image
    # Width times height of an image file; larger ones are left out. Neutral: Pillow's own limit.
    max_image_pixels: Annotated[int, Bounds(1, 178_956_970)] = 178_956_970
    damaged_jpegs: Literal["use", "leave_out"] = "use"  # that decode, but with a warning
    image_seconds: NonNegative = 0.0  # for reading and preprocessing one image; 0: no limit
    # Implementation of decoding and resizing, all with the same pixels. "auto": numba if installed.
    resize: Literal["auto", "pillow", "numba"] = "auto"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. The three learning rates are per `lr_batch` images.

    `vig_jax.train.optim.schedule` defines the schedules.

    Warm-up is set in one of its three units, and the other two are 0. All 0: no warm-up.
    """

    base_lr: NonNegative
    warmup_lr: NonNegative
    min_lr: NonNegative
    lr_batch: PositiveInt
    warmup_epochs: NonNegative
    weight_decay: NonNegative
    b1: Decay
    b2: Decay
    eps: Positive
    clip_norm: NonNegative  # of the global gradient; 0: no clipping
    warmup_steps: Count = 0
    warmup_examples: Count = 0
    # After the warm-up.
    schedule: Literal["cosine", "poly", "poly_from_start", "step"] = "cosine"
    power: Positive = 1.0  # of the polynomial
    milestones: tuple[PositiveInt, ...] = ()  # of "step": epochs after which the rate falls
    layer_decay: Share = 1.0  # learning rate of a layer relative to the layer above it
    freeze: str = ""  # untrained parameters: paths or globs; "backbone": all but the head


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, regularisation, evaluation and checkpoints of a run.

    The length and each interval are set in one of their units, and the others are 0. The length is
    required. An interval that is 0 in all units means only at the end.
    """

    batch_size: PositiveInt  # global, of one update
    epochs: Count
    label_smoothing: Probability
    ema_decay: Decay  # 0: no EMA weights
    log_every_steps: Count
    eval_every_epochs: Count
    checkpoint_every_steps: Count
    keep_checkpoints: PositiveInt
    steps: Count = 0  # updates
    examples: Count = 0
    accumulation_steps: PositiveInt = 1  # parts of the batch, computed in sequence
    eval_every_steps: Count = 0
    eval_every_examples: Count = 0
    checkpoint_every_epochs: Count = 0
    checkpoint_every_examples: Count = 0
    loggers: tuple[str, ...] = ()  # names of vig_jax.train.logging.loggers
    compilation_cache: str = ""  # folder of compiled programs; "": off
    # In which weights' gradients are summed over devices, if the model computes in bfloat16.
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    # Of several processes: one without a sign of life for so long ends the others.
    lost_after_seconds: PositiveInt = 120


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices of a run as a grid of three axes; their product is the number of devices.

    `vig_jax.sharding.mesh` makes the mesh.
    """

    data: Count = 0  # the batch is split over it; 0: all devices that the other axes leave
    fsdp: PositiveInt = 1  # the batch is split over it, and the state as well
    sequence: PositiveInt = 1  # the rows of each image are split over it


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task that a run trains. Tasks with settings derive a class from this one."""

    name: str = "classification"  # a name of vig_jax.tasks.registry


TASK_CONFIGS: dict[str, type[TaskConfig]] = {}
"""The class of `config.task` by the name of the task; tasks without settings are not listed."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    seed: Seed
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    init_weights: str | None = None  # weight file or run to start from; None: random parameters
    task: TaskConfig = TaskConfig()
    mesh: MeshConfig = MeshConfig()
    plugins: tuple[str, ...] = ()  # modules that register what the settings above name
