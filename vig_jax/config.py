"""The typed form of a run's configuration.

`configs/common.py` lists every key with its default; a config file changes some; the command line
changes more. Here the resulting `ConfigDict` becomes frozen dataclasses, and anything unknown,
missing or of the wrong type is an error that names the key. Fields with a default came later: older
checkpoints do not have them.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ml_collections import ConfigDict

from vig_jax.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which backbone, and how it computes. `None` keeps the variant's own value."""

    name: str
    num_classes: int | None  # None: as many as the data set has
    img_size: int | None  # side in pixels that the position embedding is made for
    patch_size: int | None
    embed_dim: int | None  # plain models
    depth: int | None
    num_heads: int | tuple[int, ...] | None  # hierarchical: one per stage
    drop_path_rate: float | None
    dtype: Literal["float32", "bfloat16"]  # of the computation; parameters are float32
    gla_implementation: str | None  # None: the best for the device
    merge_scale: float | None = None  # on the sum of the two scan directions
    embed_dims: tuple[int, ...] | None = None  # hierarchical models, one per stage
    depths: tuple[int, ...] | None = None  # hierarchical models, one per stage
    remat: bool = False  # compute blocks again in the backward pass: less memory, more time


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and what happens to them, on the host and then on the device."""

    source: str  # a name of vig_jax.data.datasets.registry
    path: str | None
    image_size: int  # side of the square training and evaluation images, pixels
    mean: tuple[float, float, float]  # red, green, blue, in units of [0, 1]
    std: tuple[float, float, float]
    crop: Literal["random_resized", "pad", "none"]
    crop_scale: tuple[float, float]  # share of the area ("random_resized")
    crop_ratio: tuple[float, float]  # width / height ("random_resized")
    crop_padding: int  # pixels each side before the random crop ("pad")
    hflip: float  # probability
    crop_pct: float  # evaluation: image_size / resized shorter side
    mixup_alpha: float  # 0: no mixup
    cutmix_alpha: float  # 0: no CutMix
    mixup_group: int  # examples that share one draw of lambda
    workers: int  # processes; 0: threads of this process
    prefetch: int  # batches kept ready per worker
    max_bad_images: int  # the run stops above this many undecodable images
    split: Literal["given", "stratified"] = "given"  # "stratified": held out here, per class
    val_fraction: float = 0.1  # of each class ("stratified")
    split_seed: int = 0  # of that draw; apart from the run's, so that runs can be compared
    rand_augment_layers: int = 0  # operations in a row, each with probability 1/2; 0: off
    rand_augment_magnitude: float = 9.0  # mean strength, 0 to 10
    rand_augment_std: float = 0.5  # of the strength
    color_jitter: float = 0.0  # without RandAugment: strength on brightness, contrast, saturation
    erase_probability: float = 0.0  # of random erasing, per image
    # Who decodes and resizes on the host: the same pixels. "auto": the kernel if numba is there.
    resize: Literal["auto", "pillow", "numba"] = "auto"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. The three rates are per `lr_batch` images and scale linearly.

    Warm-up is given in one of its three units, and the other two are 0; all 0: no warm-up.
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
    layer_decay: float = 1.0  # a layer's rate is this times that of the layer above it
    freeze: str = ""  # parameters that stay, by path or glob, with commas; "backbone": all but head


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, regularisation and housekeeping of a run.

    The length and each interval are given in one of their units, and the others are 0. The length
    must be given; an interval that is 0 in all units means only at the end.
    """

    batch_size: int  # global, of one update
    epochs: int
    label_smoothing: float
    ema_decay: float  # 0: no averaged weights
    log_every_steps: int
    eval_every_epochs: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    steps: int = 0  # updates
    examples: int = 0
    accumulation_steps: int = 1  # parts of the batch that go through the model one after another
    eval_every_steps: int = 0
    eval_every_examples: int = 0
    checkpoint_every_epochs: int = 0
    checkpoint_every_examples: int = 0
    compilation_cache: str = ""  # folder of compiled programs; "": none are kept


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One experiment."""

    seed: int
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    init_weights: str | None = None  # weight file or run to start from; None: fresh parameters


def parse(values: Mapping[str, Any] | ConfigDict) -> RunConfig:
    """Turns a `ConfigDict` or a plain nested mapping into frozen dataclasses, strictly.

    Args:
        values: exactly the keys of `RunConfig`, nested; unset placeholders become None.

    Raises:
        ConfigError: unknown key (with the nearest known one), missing key, or a wrong type.
    """
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    return _parse(plain, RunConfig, "config")


def _parse(values: Mapping[str, Any], kind: type[T], prefix: str) -> T:
    """An instance of `kind` from the mapping at the dotted path `prefix`."""
    hints = typing.get_type_hints(kind)
    optional = {
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is not dataclasses.MISSING
    }
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {prefix}.{near[0]}?" if near else f"; known: {sorted(hints)}"
            raise ConfigError(f"{prefix}.{key} is not a setting{hint}")
    if missing := [key for key in hints if key not in values and key not in optional]:
        raise ConfigError(f"{prefix} lacks {', '.join(missing)}: start from configs.common")
    parsed = {
        key: _convert(values[key], hint, f"{prefix}.{key}")
        for key, hint in hints.items()
        if key in values
    }
    return kind(**parsed)


def unknown_settings(values: Mapping[str, Any]) -> list[str]:
    """The keys that `parse` would refuse, as dotted paths from "config"."""
    return _unknown(values, RunConfig, "config")


def _unknown(values: Mapping[str, Any], kind: type, prefix: str) -> list[str]:
    hints = typing.get_type_hints(kind)
    found = []
    for key, value in values.items():
        if key not in hints:
            found.append(f"{prefix}.{key}")
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            found += _unknown(value, hints[key], f"{prefix}.{key}")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain dictionary of a config dataclass, ready for JSON and for `parse`."""
    return dataclasses.asdict(config)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """Checks one value against its type; widens int to float and list to tuple, nothing else."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; it must be a group of settings")
        return _parse(value, hint, path)  # type: ignore[arg-type]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        members = [a for a in args if a is not types.NoneType]
        # Of several, the one of the value's form, or the first.
        sequence = isinstance(value, (list, tuple))
        fitting = [a for a in members if (typing.get_origin(a) is tuple) == sequence]
        return _convert(value, (fitting or members)[0], path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path} is {value!r}; it must be one of {list(args)}")
        return value
    if origin is tuple:
        items = list(value) if isinstance(value, (list, tuple)) else None
        variadic = args[-1] is Ellipsis
        if items is None or not (variadic or len(items) == len(args)):
            wanted = "a sequence" if variadic else f"{len(args)} numbers"
            raise ConfigError(f"{path} is {value!r}; it must be {wanted}")
        kinds = [args[0]] * len(items) if variadic else args
        pairs = zip(items, kinds, strict=True)
        return tuple(_convert(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(pairs))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(
            f"{path} is {value!r} ({type(value).__name__}); it must be {hint.__name__}"
        )
    return value
