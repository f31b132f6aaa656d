"""Cases: the shapes of calls that tests, benchmarks and autotuning share."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from .derivatives import is_float

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""Draws the values of an argument of a given shape."""

MODEL = "model"
"""Tag of calls as the ViG models make them; other cases are small."""


def normal(scale: float = 1.0, mean: float = 0.0) -> Draw:
    """Draws normal values."""
    return lambda generator, shape: mean + scale * generator.standard_normal(shape)


def on_device(values: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Rounds to a type in numpy and copies: JAX would compile a program for each shape."""
    return jnp.asarray(np.asarray(values, jnp.dtype(dtype)), dtype)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of an operator.

    Attributes:
        name: Unique among the operator's cases.
        args: Shapes and types of the operator's arrays by name, in order.
        kwargs: The other arguments.
        draws: How values of arguments are drawn; standard normal where an argument is missing.
        tags: Such as MODEL.
        batched: Names of the arrays whose first axis is the batch; the first array's if empty.
    """

    name: str
    args: Mapping[str, jax.ShapeDtypeStruct]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    draws: Mapping[str, Draw] = dataclasses.field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    batched: frozenset[str] = frozenset()

    @property
    def dtype(self) -> np.dtype:
        """Returns the type of the first array."""
        return np.dtype(next(iter(self.args.values())).dtype)

    @property
    def bytes(self) -> int:
        """Returns the bytes of all arrays."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in self.args.values())

    def astype(self, dtype: str) -> "Case":
        """Returns the case with another type for the first array and all others of its type.

        float64 is for all floating arrays: narrower weights would limit the accuracy.
        """
        args = {
            name: jax.ShapeDtypeStruct(x.shape, dtype)
            if x.dtype == self.dtype or (dtype == "float64" and is_float(x))
            else x
            for name, x in self.args.items()
        }
        return dataclasses.replace(self, args=args)

    def with_batch(self, most: int) -> "Case":
        """Returns the case with a batch of at most this size."""
        batched = self.batched or {next(iter(self.args))}
        args = {
            name: jax.ShapeDtypeStruct((min(most, x.shape[0]), *x.shape[1:]), x.dtype)
            if name in batched and x.shape
            else x
            for name, x in self.args.items()
        }
        return dataclasses.replace(self, args=args)

    def arrays(self, seed: int = 0) -> tuple[jax.Array, ...]:
        """Draws the arrays; float64 ones need `jax.enable_x64`."""
        generator = np.random.default_rng(seed)
        return tuple(
            on_device(self.draws.get(name, normal())(generator, x.shape), x.dtype)
            for name, x in self.args.items()
        )

    def bind(self, op: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Makes a function of the arrays, in order, that calls the operator.

        Further keyword arguments of the function are passed on.
        """

        def run(*arrays: jax.Array, **more: Any) -> Any:
            named = dict(zip(self.args, arrays, strict=True))
            return op(**named, **{**self.kwargs, **options, **more})

        return run
