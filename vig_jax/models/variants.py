"""Models by name: the published ones and those of plugins."""

import dataclasses
import fnmatch
from typing import Any

from vig_jax.errors import ConfigError
from vig_jax.models.backbone import Backbone
from vig_jax.models.vig import ViG
from vig_jax.models.vig_h import ViGH
from vig_jax.text import did_you_mean

# Sizes and flags of the paper's models (ViG, AAAI 2025, table 1; hustvl/ViG configs/**/*.yaml).
VARIANTS: dict[str, tuple[type[ViG | ViGH], dict[str, Any]]] = {
    "vig_t": (
        ViG,
        {"embed_dim": 192, "num_heads": 3, "use_act_in_conv": True, "use_out_act": True},
    ),
    "vig_s": (ViG, {"embed_dim": 384, "num_heads": 6, "drop_path_rate": 0.2}),
    "vig_b": (ViG, {"embed_dim": 768, "num_heads": 12, "drop_path_rate": 0.5}),
    "vig_h_t": (
        ViGH,
        {
            "embed_dims": (96, 192, 384, 768),
            "depths": (2, 2, 5, 2),
            "num_heads": (3, 6, 12, 24),
            "drop_path_rate": 0.2,
        },
    ),
    "vig_h_s": (
        ViGH,
        {
            "embed_dims": (96, 192, 384, 768),
            "depths": (2, 2, 17, 2),
            "num_heads": (3, 6, 12, 24),
            "drop_path_rate": 0.3,
        },
    ),
    "vig_h_b": (
        ViGH,
        {
            "embed_dims": (128, 256, 512, 1024),
            "depths": (2, 2, 17, 2),
            "num_heads": (4, 8, 16, 32),
            "drop_path_rate": 0.6,
        },
    ),
}


_REGISTERED: dict[str, tuple[type[Any], dict[str, Any]]] = {}


def register_model(name: str, family: type[Any], **settings: Any) -> None:
    """Makes a model available under a name, to `create_model` and as `config.model.name`.

    Args:
        name: not in use yet.
        family: `vig_jax.models.ViG`, `vig_jax.models.ViGH`, a class derived from one of them, or
            another `flax.linen.Module` with the members of `vig_jax.models.Backbone`. Training sets
            its fields `num_classes` and `dtype`, and those of `config.model` that are not None.
        **settings: fields of the class that differ from their defaults.

    Raises:
        ConfigError: the name is in use, or the class has no such field.
    """
    if name in VARIANTS or name in _REGISTERED:
        raise ConfigError(f"{name!r} is the name of a model already: choose another one")
    fields = _fields(family)
    for key in settings:
        if key not in fields:
            hint = did_you_mean(key, fields)
            raise ConfigError(f"{family.__name__} has no setting {key!r}; {hint}")
    _REGISTERED[name] = (family, settings)


def is_published(name: str) -> bool:
    """Returns whether a model is one of the paper's, which every installation has."""
    return name in VARIANTS


def list_models(filter: str = "*") -> tuple[str, ...]:
    """Returns the names that `create_model` accepts.

    Args:
        filter: a pattern of the shell, as in timm; "vig_h_*" selects the hierarchical models.
    """
    return tuple(fnmatch.filter((*VARIANTS, *_REGISTERED), filter))


def create_model(name: str, num_classes: int = 1000, **overrides: Any) -> Backbone:
    """Builds a model by name.

    Args:
        name: one of `list_models()`.
        num_classes: width of the classification head; 0 means no head.
        **overrides: fields of the model class, `vig_jax.models.ViG` or for the hierarchical models
            `vig_jax.models.ViGH`; e.g. `drop_path_rate=0.1`, `dtype=jnp.bfloat16`.

    Returns:
        A `flax.linen` module, `ViG` or `ViGH` for a published name; `model.apply(variables,
        images)` returns logits [B, num_classes], or pooled features [B, D] if `num_classes` is 0.

    Raises:
        ConfigError: unknown name or field; the message suggests the nearest ones.
    """
    fields = model_settings(name)
    if "pretrained" in overrides:
        raise ConfigError(
            "create_model returns a module, which holds no weights: read them with "
            "vig_jax.load_weights(path), or both with vig_jax.from_pretrained(path)"
        )
    for key in overrides:
        if key not in fields:
            raise ConfigError(f"{name} has no setting {key!r}; {did_you_mean(key, list(fields))}")
    family, values = _variant(name)
    return family(num_classes=num_classes, **(values | overrides))


def model_settings(name: str) -> tuple[str, ...]:
    """Returns the settings that `create_model` accepts for a model, with `num_classes`.

    Raises:
        ConfigError: unknown name; the message suggests the nearest ones.
    """
    return _fields(_variant(name)[0])


def _variant(name: str) -> tuple[type[Any], dict[str, Any]]:
    """Returns the class of a model and its settings."""
    if name not in (*VARIANTS, *_REGISTERED):
        raise ConfigError(f"unknown model {name!r}; {did_you_mean(name, list_models())}")
    return VARIANTS[name] if name in VARIANTS else _REGISTERED[name]


def _fields(family: type[Any]) -> tuple[str, ...]:
    """Returns the settings of a class of models."""
    fields = dataclasses.fields(family)
    return tuple(f.name for f in fields if f.name not in ("parent", "name"))
