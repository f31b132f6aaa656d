"""Chooses implementations for whole programs, such as models, from outside of their calls."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

PORTABLE = "portable"
"""Stands for all implementations of an operator that serve every platform, best first."""

_known: set[str] = {PORTABLE}
# Its value is a part of the key of the cache of `jax.jit`.
_chosen = jax.make_user_context(default_value=())


@contextlib.contextmanager
def implementations(*names: str) -> Iterator[None]:
    """Chooses the implementation of every operator that is called or traced meanwhile.

    It has precedence over `implementation=` and `config=` of the calls, so it holds for a model
    whatever its layers name. Contexts nest, and the inner one counts alone.

    Args:
        *names: Names of implementations, tried in order. An operator skips those that it does not
            have, and one that has none of them chooses as without this context. "portable" stands
            for all implementations of an operator that serve every platform. With it, programs have
            no kernels and no branches by platform: they can be translated to other formats.

    Raises:
        ValueError: No name is given, or no operator has an implementation of that name.
    """
    if not names:
        raise ValueError(f"name at least one implementation of {', '.join(sorted(_known))}")
    for name in names:
        if name not in _known:
            raise ValueError(f"unknown implementation {name!r}{known(name, sorted(_known))}")
    with _chosen(names):
        yield


def known(name: str, names: Sequence[str]) -> str:
    """Returns the end of a message about an unknown name: the nearest name, and all of them."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (known: {', '.join(names)})"


def register(names: Mapping[str, Any]) -> None:
    """Adds to the names that `implementations` knows."""
    _known.update(names)


def chosen(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names that the context chooses from an operator's table; none without a context.

    Args:
        table: The operator's `kernels_pallas.core.dispatch.Implementation`s by name, best first.
    """
    names: list[str] = []
    for name in _chosen.value:
        if name == PORTABLE:
            names += [other for other, impl in table.items() if impl.platforms is None]
        elif name in table:
            names.append(name)
    return tuple(dict.fromkeys(names))


def only_portable() -> bool:
    """Returns whether programs may have no branches by platform."""
    return PORTABLE in _chosen.value
