"""Turns mappings into typed settings, strictly.

A config file starts from a recipe and changes some values; the command line changes more. Anything
unknown, missing or of the wrong type is an error that names the key.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from ml_collections import ConfigDict

from vig_jax.config.plugins import check_plugins
from vig_jax.config.schema import TASK_CONFIGS, Ascending, Bounds, RunConfig, TaskConfig
from vig_jax.errors import ConfigError
from vig_jax.text import did_you_mean

T = TypeVar("T")


def parse(values: Mapping[str, Any] | ConfigDict) -> RunConfig:
    """Turns a `ConfigDict` or a plain nested mapping into frozen dataclasses, strictly.

    Args:
        values: exactly the keys of `RunConfig`, nested; unset placeholders become None.

    Raises:
        ConfigError: unknown key (with the nearest known one), missing key, a wrong type, or a
            plugin that is not imported.
    """
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    check_plugins(plain, "the config")
    return _parse(plain, RunConfig, "config")


def _parse(values: Mapping[str, Any], kind: type[T], prefix: str) -> T:
    """Returns an instance of `kind` from the mapping at the dotted path `prefix`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    optional = {
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is not dataclasses.MISSING
    }
    for key in values:
        if key not in hints:
            hint = did_you_mean(key, hints, prefix=f"{prefix}.")
            raise ConfigError(f"{prefix}.{key} is not a setting; {hint}")
    if missing := [key for key in hints if key not in values and key not in optional]:
        raise ConfigError(f"{prefix} lacks {', '.join(missing)}: start from vig_jax.config.recipes")
    parsed = {
        key: _convert(values[key], hint, f"{prefix}.{key}")
        for key, hint in hints.items()
        if key in values
    }
    return kind(**parsed)


def unknown_settings(values: Mapping[str, Any]) -> list[str]:
    """Returns the keys that `parse` would refuse, as dotted paths from "config"."""
    return _unknown(values, RunConfig, "config")


def _unknown(values: Mapping[str, Any], kind: type, prefix: str) -> list[str]:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for key, value in values.items():
        if key not in hints:
            found.append(f"{prefix}.{key}")
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            found += _unknown(value, _group(hints[key], value), f"{prefix}.{key}")
    return found


def _group(hint: Any, values: Mapping[str, Any]) -> type:
    """Returns the class of a group of settings; that of `config.task` depends on its name."""
    return TASK_CONFIGS.get(values.get("name", ""), TaskConfig) if hint is TaskConfig else hint


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as a nested dictionary, ready for JSON and for `parse`."""
    return dataclasses.asdict(config)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """Checks one value against its type; widens int to float and list to tuple, nothing else."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; it must be a group of settings")
        return _parse(value, _group(hint, value), path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, *rules = args
        converted = _convert(value, kind, path)
        for rule in rules:
            _check(converted, rule, path)
        return converted
    if origin in (types.UnionType, typing.Union):  # Annotated members make it typing.Union
        if value is None:
            return None
        members = [a for a in args if a is not types.NoneType]
        # Of several types, choose the one that matches the value's form, else the first.
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
            expected = "a sequence" if variadic else f"{len(args)} numbers"
            raise ConfigError(f"{path} is {value!r}; it must be {expected}")
        kinds = [args[0]] * len(items) if variadic else args
        pairs = zip(items, kinds, strict=True)
        return tuple(_convert(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(pairs))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value}; it must be a finite number")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(
            f"{path} is {value!r} ({type(value).__name__}); it must be {hint.__name__}"
        )
    return value


def _check(value: Any, rule: Bounds | Ascending, path: str) -> None:
    """Refuses a value that breaks a rule of the schema."""
    if isinstance(rule, Bounds) and not rule.contains(value):
        raise ConfigError(f"{path} is {value!r}; it must be {rule}")
    if isinstance(rule, Ascending) and value[0] > value[1]:
        raise ConfigError(f"{path} is {value!r}; its first number must not exceed its second")
