"""States that pass between the parts of a sequence, where devices hold a part of the tokens each.

A part computes the state that its own tokens make from nothing, and the decay of all of them. These
two describe the part to all others: nothing else of it is sent, whatever its number of tokens.
"""

from collections.abc import Hashable, Sequence
from typing import Protocol, cast, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float


@runtime_checkable
class Exchange(Protocol):
    """Computes the states that arrive at this part of the tokens.

    It is a static argument, so it must be hashable, and equal to others that do the same. Kernels
    call it in both passes and do not differentiate it. The other implementations do.
    """

    def __call__(
        self,
        states: Float[Array, "N B H K V"],
        decays: Float[Array, "N B H K"],
        reverse: Sequence[bool],
    ) -> Float[Array, "N B H K V"]:
        """Returns the states before the first token of this part.

        With s_i and d_i the state and decay of part i, in the order of the movement::

            arriving_0 = 0        arriving_{i+1} = d_i * arriving_i + s_i

        Args:
            states: What the tokens of this part make of a state of zeros, for N directions.
            decays: The decays of this part, in [0, 1].
            reverse: For each direction, True if it moves from the last part to the first.
        """


def arriving_states(
    exchange: Exchange,
    states: Sequence[Float[Array, "B H K V"]],
    log_decays: Sequence[Float[Array, "B T H K"]],
    reverse: Sequence[bool],
) -> Float[Array, "N B H K V"]:
    """Calls `exchange` with log-decays of tokens; see `Exchange`.

    Sums of log-decays have the type of `states`.
    """
    totals = [jnp.sum(x, axis=1, dtype=states[0].dtype) for x in log_decays]
    return exchange(jnp.stack(states), jnp.exp(jnp.stack(totals)), tuple(reverse))


def checked_exchange(exchange: object) -> Exchange | None:
    """Returns `exchange`.

    Raises:
        TypeError: It is neither None nor a hashable function.
    """
    if exchange is not None and not (callable(exchange) and isinstance(exchange, Hashable)):
        raise TypeError(
            f"exchange must be a hashable function or None, got {type(exchange).__name__}"
        )
    return cast("Exchange | None", exchange)
