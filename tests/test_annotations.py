import dataclasses

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError

from kernels_pallas import gla
from tests.annotations import checked


@pytest.mark.parametrize(
    "arrays",
    [
        {"v": jnp.zeros((1, 5, 1, 8))},  # tokens
        {"log_decay": jnp.zeros((1, 4, 1, 8), "int32")},
        {"reverse": "yes"},
    ],
    ids=["shape", "type", "other"],
)
def test_calls_are_checked(arrays):
    x = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(TypeCheckError, match=next(iter(arrays))):
        gla(**({"q": x, "k": x, "v": x, "log_decay": x} | arrays), implementation="xla")


def first(x: Float[Array, "N M"], count: int) -> Float[Array, "{count} M"]:
    return x[:count]


def unknown(x: Float[Array, " N"], y: "list[OfAnotherModule]") -> "OfAnotherModule":
    return y[0]


def turned(x: Float[Array, "N M"]) -> Float[Array, "N M"]:
    return x.T


@dataclasses.dataclass
class Pair:
    x: Float[Array, " N"]
    y: Float[Array, " N"]


def test_sizes_of_a_call_fit_each_other():
    x = jnp.zeros((4, 3))
    for _ in range(2):  # the first call makes the checks
        checked(first)(x, 2)
        checked(turned)(x[:3])
        checked(Pair)(x[0], x[1])
        checked(unknown)(x[0], [1])
    for wrong in (
        lambda: checked(first)(x, 5),
        lambda: checked(turned)(x),
        lambda: checked(unknown)(x, [1]),
        lambda: checked(Pair)(x[0], x[:, 0]),
    ):
        with pytest.raises(TypeCheckError):
            wrong()
