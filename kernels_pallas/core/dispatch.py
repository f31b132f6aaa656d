"""Which implementation of an operator serves a call: boring on purpose, and loud.

An implementation says in `supports(spec)` why it cannot serve a call. Named alone, that reason is
an error. In a list (the default order is one) it means "try the next", and so does a
NotImplementedError while the implementation is being traced; nothing else falls through.

An implementation made for some platforms only is chosen when the program is lowered for one of
them, not when it is traced: a traced function stays portable between machines and exportable.
"""

import dataclasses
import difflib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

_LOG = logging.getLogger("kernels_pallas")


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        name: Also its file stem and its value of `implementation=`.
        supports: Pure; takes the call's spec and returns why the call cannot be served, or None.
        run: Takes the spec and the operator's arrays.
        platforms: Platforms it lowers for ("cuda", "tpu", ...), or None for all of them.
    """

    name: str
    supports: Callable[[Any], str | None]
    run: Callable[..., Any]
    platforms: tuple[str, ...] | None = None


# What only lowers for some platforms, by the name of the implementation.
_PLATFORMS: Mapping[str, tuple[str, ...]] = {"pallas_triton": ("cuda",)}


def compiled(modules: Mapping[str, Any], op: str) -> dict[str, Implementation]:
    """The implementations of an operator, one per module, best first.

    They are compiled by spec: a call outside of jit compiles once, and a model's equal layers trace
    once.

    Args:
        modules: By name; each has `supports` and a function called `op`, spec first.
        op: The operator's name.
    """
    return {
        name: Implementation(
            name,
            module.supports,
            jax.jit(getattr(module, op), static_argnums=0),
            _PLATFORMS.get(name),
        )
        for name, module in modules.items()
    }


def dispatch(
    op: str,
    spec: Any,
    arrays: Sequence[Any],
    *,
    implementation: str | Sequence[str] | None,
    table: Mapping[str, Implementation],
    order: Sequence[str],
) -> Any:
    """Runs `op` with the implementation asked for.

    Args:
        op: The operator's name, for messages.
        spec: Static facts of the call, handed to `supports` and `run`.
        arrays: The operator's arrays, in the order of `run`; an entry may be None.
        implementation: A name, several names to try in order, or None for `order`.
        table: Every implementation by name.
        order: Names to try when `implementation` is None, best first.

    Returns:
        What the chosen implementation returns.

    Raises:
        ValueError: A name is unknown, or the sequence of names is empty.
        TypeError: `implementation` is neither a name, a sequence of names nor None.
        NotImplementedError: No implementation named can serve the call; the reasons are told.
    """
    names = _names(op, implementation, table, order)
    reasons = {name: table[name].supports(spec) for name in names}
    usable = [table[name] for name in names if reasons[name] is None]
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if isinstance(implementation, str):
        if skipped:
            raise _cannot_run(op, spec, skipped)
        return usable[0].run(spec, *arrays)

    # Platforms with a branch of their own; none where nothing serves the others: as a name alone.
    special = {platform for impl in usable for platform in impl.platforms or ()}
    if all(impl.platforms for impl in usable):
        special = set()

    def level(platform: str | None) -> int:
        """All branches are traced; what matters here and now is told louder."""
        here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        elsewhere = here in special if platform is None else here != platform
        return logging.DEBUG if elsewhere else logging.INFO

    def attempt(platform: str | None, *arrays: Any) -> Any:
        failed = dict(skipped)
        for impl in usable:
            if not special or impl.platforms is None or platform in impl.platforms:
                try:
                    result = impl.run(spec, *arrays)
                except NotImplementedError as error:
                    failed[impl.name] = str(error)
                else:
                    _log_choice(op, impl.name, platform, level(platform), tuple(failed.items()))
                    return result
        raise _cannot_run(op, spec, failed)

    if not special:
        return attempt(None, *arrays)
    branches = {platform: functools.partial(attempt, platform) for platform in sorted(special)}
    branches["default"] = functools.partial(attempt, None)
    return jax.lax.platform_dependent(*arrays, **branches)


def _names(
    op: str,
    implementation: Any,
    table: Mapping[str, Implementation],
    order: Sequence[str],
) -> list[str]:
    if implementation is None:
        return list(order)
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
            near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{op}: unknown implementation {name!r}{hint} (known: {', '.join(table)})"
            )
    return list(names)


def _cannot_run(op: str, spec: Any, reasons: Mapping[str, str]) -> NotImplementedError:
    told = "; ".join(f"{name!r} cannot run this call: {reason}" for name, reason in reasons.items())
    return NotImplementedError(f"{op}: {told or 'nothing to try'}. The call: {spec}")


@functools.cache  # one line per distinct choice, however often the operator is traced
def _log_choice(
    op: str, name: str, platform: str | None, level: int, failed: tuple[tuple[str, str], ...]
) -> None:
    where = f" when lowered for {platform}" if platform else ""
    why = "".join(f"; not {other}: {reason}" for other, reason in failed)
    _LOG.log(level, "%s: using %s%s%s", op, name, where, why)
