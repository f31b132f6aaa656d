"""Selects the implementation of an operator that serves a call.

An implementation is a module; `Module` lists what it defines. Its `supports(spec, device)` returns
the reason for which it cannot serve a call. If the implementation was named alone, the reason
becomes an error. In a sequence of names, such as the default order, the next name is tried; so it
is if tracing the implementation raises NotImplementedError. Other errors are not caught.

An implementation for some platforms only is selected when the program is lowered, not when it is
traced. So a traced function can be lowered for other machines, and exported.
"""

import contextvars
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax import export

from .choice import chosen, known, register
from .device import Device
from .launch import target_device

_LOG = logging.getLogger("kernels_pallas")


class Module(Protocol):
    """An implementation of an operator that serves every platform.

    Attributes:
        PLATFORMS: Platforms that it can be lowered for ("cuda", ...), or None for all platforms.
    """

    PLATFORMS: tuple[str, ...] | None

    def supports(self, spec: Any, device: Device | None) -> str | None:
        """Returns the reason for which a call cannot be served, or None.

        Args:
            spec: The static facts of the call.
            device: The GPU at hand, or None if it is not known.
        """

    def run(self, spec: Any, *arrays: Any) -> Any:
        """Computes the operator."""


class Backend(Protocol):
    """An implementation in kernels: a `Module` with a config that can be chosen and tuned.

    A backend may also define `leads(spec, device) -> bool`: it is tried before the implementations
    that the table lists before it, because it is faster for this call on this GPU.

    Attributes:
        PLATFORMS: As of `Module`.
        TUNED_AS: Name of the stored winners, "<operator>.<backend>".
        Config: The type of configs, a frozen dataclass: see `kernels_pallas.core.config`.
    """

    PLATFORMS: tuple[str, ...] | None
    TUNED_AS: str
    Config: type

    def supports(self, spec: Any, device: Device | None) -> str | None:
        """Returns the reason for which a call cannot be served, or None: see `Module`."""

    def heuristic(self, spec: Any, device: Device | None) -> Any:
        """Returns the config for a call that was not measured."""

    def candidates(self, spec: Any, device: Device | None) -> Iterable[Any]:
        """Returns the configs that autotuning tries."""

    def run(self, spec: Any, *arrays: Any, config: Any = None) -> Any:
        """Computes the operator; `config` defaults to the stored winner or the heuristic's."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        name: Its value of `implementation=`, also the name of its module.
        supports: See `Module`.
        run: Takes the spec, the operator's arrays and, if there is a config type, `config=`.
        platforms: See `Module.PLATFORMS`.
        config_type: The type of its configs, or None if it has no settings.
        module: Where it is defined.
        leads: See `Backend`.
    """

    name: str
    supports: Callable[[Any, Device | None], str | None]
    run: Callable[..., Any]
    platforms: tuple[str, ...] | None = None
    config_type: type | None = None
    module: Any = None
    leads: Callable[[Any, Device], bool] = lambda spec, device: False


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of an operator as `dispatch` sees it."""

    op: str
    spec: Any
    table: Mapping[str, Implementation]


class _ObservedError(Exception):
    """Carries the first call of an operator out of `dispatch`."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.call = call


_observing = contextvars.ContextVar("kernels_pallas_observing", default=False)


def observe(run: Callable[..., Any], *arguments: Any) -> Call:
    """Returns the first call of an operator that a function makes, and computes nothing.

    Args:
        run: A function that calls an operator.
        *arguments: Its arrays, or `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: The function calls no operator.
    """
    token = _observing.set(True)
    try:
        jax.eval_shape(run, *arguments)
    except _ObservedError as observed:
        return observed.call
    finally:
        _observing.reset(token)
    raise ValueError("the function calls no operator of kernels_pallas")


def implementations(modules: Mapping[str, Any]) -> dict[str, Implementation]:
    """Makes the table of an operator's implementations, best first.

    Each is compiled by spec and config: a call outside of `jax.jit` compiles once, and equal layers
    of a model are traced once.

    Args:
        modules: The implementations' modules (see `Module` and `Backend`) by name.
    """
    table = {}
    register(modules)
    for name, module in modules.items():
        config_type = getattr(module, "Config", None)
        static = ("config",) if config_type else ()
        run = jax.jit(module.run, static_argnums=0, static_argnames=static)
        table[name] = Implementation(
            name, module.supports, run, module.PLATFORMS, config_type, module
        )
        if hasattr(module, "leads"):
            table[name] = dataclasses.replace(table[name], leads=module.leads)
    return table


def dispatch(
    op: str,
    spec: Any,
    arrays: Sequence[Any],
    *,
    implementation: str | Sequence[str] | None,
    config: Any = None,
    table: Mapping[str, Implementation],
) -> Any:
    """Runs the implementation that the caller asks for, or the best one.

    Args:
        op: The operator's name, for messages.
        spec: The static facts of the call.
        arrays: The operator's arrays in the order of `run`; an entry may be None.
        implementation: A name, several names to try in order, or None for all in the table's order,
            after those that lead on the GPU at hand and that `config` is for. The context
            `kernels_pallas.implementations` has precedence.
        config: The config of one of these implementations, which runs with it; None lets every
            implementation choose.
        table: All implementations by name, best first.

    Returns:
        The result of the chosen implementation.

    Raises:
        ValueError: A name is unknown, or the sequence of names is empty.
        TypeError: `implementation` is neither a name, a sequence of names nor None; or `config`
            does not belong to any of the implementations.
        NotImplementedError: No implementation that was asked for can serve the call. The message
            has the reasons.
    """
    if _observing.get():
        raise _ObservedError(Call(op, spec, table))
    if choice := chosen(table):
        implementation = choice
        config = config if type(config) in {table[name].config_type for name in choice} else None
    names = _names(op, implementation, table)
    _check_config(op, config, names, table)
    device = target_device()
    if implementation is None:
        names = best_first(spec, device, table)
        if config is not None:  # the implementation that it is for comes first
            names.sort(key=lambda name: table[name].config_type is not type(config))
    symbolic = "a size is symbolic, and kernels need numbers" if _is_symbolic(arrays) else None
    reasons = {
        name: (symbolic if table[name].platforms else None) or table[name].supports(spec, device)
        for name in names
    }
    if axes := _explicit_axes(arrays):
        split = (
            f"the arrays are split over the explicit mesh axes {', '.join(axes)}: call it inside "
            "jax.shard_map"
        )
        reasons |= {name: split for name in names if table[name].platforms}
    usable = [table[name] for name in names if reasons[name] is None]
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}

    def run(impl: Implementation, arrays: Sequence[Any]) -> Any:
        if config is None or type(config) is not impl.config_type:
            return impl.run(spec, *arrays)
        return impl.run(spec, *arrays, config=config)

    if isinstance(implementation, str):
        if skipped:
            raise _cannot_run(op, spec, skipped)
        return run(usable[0], arrays)

    # Platforms that need their own branch. Without a portable implementation there is no branch for
    # other platforms, and the program is not divided, as when a name is given alone.
    special = {platform for impl in usable for platform in impl.platforms or ()}
    if all(impl.platforms for impl in usable):
        special = set()

    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()

    def level(platform: str | None, failed: Mapping[str, str]) -> int:
        """Returns INFO for the branch of the local platform, DEBUG for the other branches.

        Where no kernel can run, `_log_platform` logs one line for all operators instead.
        """
        elsewhere = here in special if platform is None else here != platform
        if elsewhere:
            return logging.DEBUG
        made_for = {place for impl in table.values() for place in impl.platforms or ()}
        local = [name for name in failed if here in (table[name].platforms or (here,))]
        return logging.DEBUG if made_for and here not in made_for and not local else logging.INFO

    def attempt(platform: str | None, *arrays: Any) -> Any:
        failed = dict(skipped)
        for impl in usable:
            if not special or impl.platforms is None or platform in impl.platforms:
                try:
                    result = run(impl, arrays)
                except NotImplementedError as error:
                    failed[impl.name] = str(error)
                else:
                    choice_level = level(platform, failed)
                    _log_choice(op, impl.name, platform, choice_level, tuple(failed.items()))
                    if choice_level == logging.DEBUG and platform is None and here not in special:
                        _log_platform(here, f"{op}: using {impl.name}")
                    return result
        raise _cannot_run(op, spec, failed)

    if not special:
        return attempt(None, *arrays)
    branches = {platform: functools.partial(attempt, platform) for platform in sorted(special)}
    branches["default"] = functools.partial(attempt, None)
    return jax.lax.platform_dependent(*arrays, **branches)


def best_first(spec: Any, device: Device | None, table: Mapping[str, Implementation]) -> list[str]:
    """Returns the names of a table in the order in which a call without a name tries them."""
    if device is None:
        return list(table)
    return sorted(table, key=lambda name: not table[name].leads(spec, device))


def _is_symbolic(arrays: Sequence[Any]) -> bool:
    """Returns whether an array has a size that only an exported program's caller knows."""
    return any(export.is_symbolic_dim(size) for x in jax.tree.leaves(arrays) for size in x.shape)


def _explicit_axes(arrays: Sequence[Any]) -> list[str]:
    """Returns the axes of a mesh that split arrays, if JAX tracks them in the arrays' types.

    Kernels have no rule for such types.
    """
    specs = [jax.typeof(x).sharding.spec for x in jax.tree.leaves(arrays)]
    entries = [entry for spec in specs for entry in spec if entry is not None]
    names = [name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry)]
    return sorted(set(names))


def _names(op: str, implementation: Any, table: Mapping[str, Implementation]) -> list[str]:
    if implementation is None:
        return list(table)
    names = [implementation] if isinstance(implementation, str) else implementation
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{op}: implementation must be a name, a sequence of names or None, "
            f"got {implementation!r}"
        )
    if not names:
        raise ValueError(f"{op}: implementation is an empty sequence; name at least one, or None")
    for name in names:
        if name not in table:
            raise ValueError(f"{op}: unknown implementation {name!r}{known(name, list(table))}")
    return list(names)


def _check_config(
    op: str, config: Any, names: Sequence[str], table: Mapping[str, Implementation]
) -> None:
    types = [table[name].config_type for name in names]
    if config is None or type(config) in types:
        return
    takes = "; ".join(
        f"{name!r} takes {'no config' if kind is None else f'{kind.__module__}.{kind.__name__}'}"
        for name, kind in zip(names, types, strict=True)
    )
    raise TypeError(
        f"{op}: config is a {type(config).__module__}.{type(config).__name__}, which does not "
        f"belong to the implementation: {takes}"
    )


def _cannot_run(op: str, spec: Any, reasons: Mapping[str, str]) -> NotImplementedError:
    text = "; ".join(f"{name!r} cannot run this call: {reason}" for name, reason in reasons.items())
    return NotImplementedError(f"{op}: {text or 'nothing to try'}. The call: {spec}")


@functools.cache
def _log_platform(here: str, first_choice: str) -> None:
    if _log_platform.cache_info().currsize == 0:  # one line, whichever operator comes first
        _LOG.info("%s; no operator has kernels for %s", first_choice, here)


@functools.cache  # one line per distinct choice, however often the operator is traced
def _log_choice(
    op: str, name: str, platform: str | None, level: int, failed: tuple[tuple[str, str], ...]
) -> None:
    where = f" when lowered for {platform}" if platform else ""
    why = "".join(f"; not {other}: {reason}" for other, reason in failed)
    _LOG.log(level, "%s: using %s%s%s", op, name, where, why)
