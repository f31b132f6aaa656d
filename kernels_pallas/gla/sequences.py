"""Several sequences side by side in one row of tokens: where each starts, and its own states.

`cu_seqlens` holds M = N + 1 borders. Sequence n has the tokens from cu_seqlens[n] to
cu_seqlens[n + 1], and those after the last border are one more sequence.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def borders(cu_seqlens: Int[Array, " M"], tokens: int) -> Int[Array, " M+1"]:
    """Returns the first token of each of the N + 1 sequences, and T; all in [0, T]."""
    inner = jnp.clip(cu_seqlens[1:].astype(jnp.int32), 0, tokens)
    return jnp.pad(jnp.append(inner, jnp.int32(tokens)), (1, 0))


def checked_cu_seqlens(cu_seqlens: object, shape: Sequence[int]) -> Int[Array, " M"]:
    """Returns the borders as int32.

    Args:
        cu_seqlens: As the caller gives them.
        shape: Shape [1, T, ...] of what they divide.

    Raises:
        TypeError: They are not an array of integers.
        ValueError: The batch is not 1, or they do not go from 0 up to at most T.
    """
    if not isinstance(cu_seqlens, jax.Array | np.ndarray):
        raise TypeError(f"cu_seqlens must be a JAX or numpy array, got {type(cu_seqlens).__name__}")
    if not jnp.issubdtype(cu_seqlens.dtype, jnp.integer):
        raise TypeError(f"cu_seqlens must be integers, got {cu_seqlens.dtype}: cast to int32")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have N + 1 >= 2 elements, got shape {cu_seqlens.shape}")
    if shape[0] != 1:
        raise ValueError(
            f"cu_seqlens needs one row of tokens, got a batch of {shape[0]}: reshape the arrays to "
            "[1, batch * tokens, ...] and add the rows' starts to the borders"
        )
    if not isinstance(cu_seqlens, jax.core.Tracer):
        values = np.asarray(cu_seqlens)
        if values[0] != 0 or (values[1:] < values[:-1]).any() or values[-1] > shape[1]:
            raise ValueError(
                f"cu_seqlens must go from 0 up to at most the {shape[1]} tokens, got {values}"
            )
    return jnp.asarray(cu_seqlens, jnp.int32)


def sequence_of(starts: Int[Array, " M"], count: int) -> Int[Array, " X"]:
    """Returns the sequence of each of the numbers 0 to count - 1; empty sequences have none."""
    return jnp.searchsorted(starts[1:], jnp.arange(count), side="right", method="compare_all")


def with_rest(states: Float[Array, "N H K V"]) -> Float[Array, "N+1 H K V"]:
    """Appends the state of zeros from which the tokens after the last border start."""
    return jnp.pad(states, ((0, 1), (0, 0), (0, 0), (0, 0)))


class Aligned(NamedTuple):
    """A layout in which each sequence starts a chunk, for implementations that work by chunks.

    A sequence that starts at token s begins chunk s // C + its number. So no chunk has tokens of
    two sequences, and there are T // C + N + 1 chunks.

    Attributes:
        chunks: Number X of chunks.
        positions: Place [T] of each token among the X C places.
        sequences: The sequence [X] that each chunk belongs to.
        first: First chunk of each sequence [N + 1]. An empty sequence has one, without tokens.
        last: Last chunk of each sequence [N + 1].
    """

    chunks: int
    positions: Int[Array, " T"]
    sequences: Int[Array, " X"]
    first: Int[Array, " M"]
    last: Int[Array, " M"]

    @classmethod
    def from_borders(cls, starts: Int[Array, " S"], tokens: int, chunk: int) -> "Aligned":
        """Returns the layout for chunks of C tokens.

        Args:
            starts: From `borders`.
            tokens: T.
            chunk: C.
        """
        count = starts.shape[0] - 1
        chunks = tokens // chunk + count
        first = starts[:-1] // chunk + jnp.arange(count, dtype=jnp.int32)
        last = jnp.append(first[1:], jnp.int32(chunks)) - 1
        number = sequence_of(starts[:-1], tokens)
        positions = first[number] * chunk + jnp.arange(tokens) - starts[number]
        return cls(chunks, positions, sequence_of(first, chunks), first, last)

    def spread(self, x: Float[Array, "1 T H D"], chunk: int) -> Float[Array, "1 XC H D"]:
        """Moves tokens to their places; the others are zero."""
        places = jnp.zeros((1, self.chunks * chunk, *x.shape[2:]), x.dtype)
        return places.at[:, self.positions].set(x, unique_indices=True, indices_are_sorted=True)

    def collect(self, x: Float[Array, "1 XC H D"]) -> Float[Array, "1 T H D"]:
        """Moves tokens back from their places."""
        return x.at[:, self.positions].get(
            unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds"
        )

    def restarts(self, states: Float[Array, "N H K V"] | None, reverse: bool) -> "Restarts":
        """Returns where a scan starts from the `states` of the sequences, or from zeros."""
        first, last = (self.last, self.first) if reverse else (self.first, self.last)
        fresh = jnp.arange(self.chunks) == first[self.sequences]
        if states is not None:
            states = with_rest(states)[self.sequences]
        return Restarts(fresh, states, last[:-1])


class Restarts(NamedTuple):
    """The chunks in which a scan starts from another state than that of the chunk before.

    Attributes:
        fresh: True for a sequence's first chunk in the order of the scan [X].
        states: The states [X, H, K, V] that these chunks start from, or None for zeros.
        last: The last chunk of each sequence in that order [N].
    """

    fresh: Bool[Array, " X"]
    states: Float[Array, "X H K V"] | None
    last: Int[Array, " N"]

    def pass_on(
        self,
        scan: Callable[[Array, Array], Array],
        decay: Float[Array, "X H K"],
        update: Float[Array, "X H K V"],
    ) -> tuple[Float[Array, "X H K V"], Float[Array, "N H K V"]]:
        """Returns the states before each chunk and the final state of each sequence.

        Args:
            scan: Returns the states before each chunk from its arguments like the next two, for
                one sequence that starts from zeros.
            decay: The decay of each chunk.
            update: What each chunk adds to the state.
        """
        fresh = self.fresh[:, None, None, None]
        decay = decay[..., None]
        given = jnp.zeros_like(update) if self.states is None else self.states.astype(update.dtype)
        given = jnp.where(fresh, given, 0)
        before = scan(jnp.where(fresh, 0, decay)[..., 0], update + decay * given)
        before = jnp.where(fresh, given, before)
        at = self.last
        return before, decay[at] * before[at] + update[at]
