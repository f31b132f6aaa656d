"""Images whose rows are split over devices: what a layer needs from the other devices.

A map [B, h, w, D] is split by rows over the mesh axis `sequence`, and its tokens, row by row, are
too. `vig_jax.sharding.kernels.MAPS` says so to `shard_kernel`. A kernel that needs more than the
rows of its device calls a function of this module.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.errors import ConfigError
from vig_jax.sharding.mesh import SEQUENCE_AXIS


@dataclasses.dataclass(frozen=True)
class ExchangeStates:
    """Passes the states of a scan between devices; see `kernels_pallas.gla.exchange`.

    One all-gather of K (V + 1) numbers per head, image and direction, whatever the number of
    tokens. Each device then combines what lies before it. Decays are multiplied and never divided,
    so this is exact for all of them.

    Attributes:
        axis: name of the mesh axis that splits the tokens.
    """

    axis: str

    def __call__(
        self,
        states: Float[Array, "N B H K V"],
        decays: Float[Array, "N B H K"],
        reverse: Sequence[bool],
    ) -> Float[Array, "N B H K V"]:
        """Returns the states that arrive at this device."""
        own = jnp.concatenate([states, decays[..., None].astype(states.dtype)], axis=-1)
        parts = jax.lax.all_gather(own, self.axis)
        here, devices = jax.lax.axis_index(self.axis), len(parts)
        arriving = []
        for number, backwards in enumerate(reverse):
            state = jnp.zeros_like(states[number])
            for device in range(devices)[:: -1 if backwards else 1]:
                before = device > here if backwards else device < here
                part = parts[device, number]
                state = jnp.where(before, part[..., -1:] * state + part[..., :-1], state)
            arriving.append(state)
        return jnp.stack(arriving)


def exchange_states() -> ExchangeStates | None:
    """Returns the exchange for a scan in a `shard_kernel`; None if devices have whole images."""
    return ExchangeStates(SEQUENCE_AXIS) if _is_split() else None


def convolve_rows(
    conv: Callable[..., jax.Array],
    border: Callable[..., jax.Array],
    x: Float[Array, "B h w C"],
    *weights: jax.Array,
    kernel_size: int,
    stride: int,
) -> Float[Array, "B h2 w2 D"]:
    """Computes a convolution of zero padding 1 in a `shard_kernel`, with rows of other devices.

    The device can convolve its own rows meanwhile, with zeros around them. Then it computes those
    rows of the result again that see a row of a neighbour, so no map is copied.

    Args:
        conv: the convolution of maps, `conv(x, *weights)`.
        border: the same for a map of few rows, which XLA should fuse with what surrounds it.
        x: the rows of this device; `stride` divides their number.
        *weights: other arguments.
        kernel_size: rows of the kernel, at most `stride` + 2.
        stride: rows from one row of the result to the next.
    """
    out = conv(x, *weights)
    if not _is_split():
        return out
    skipped = jnp.zeros((x.shape[0], stride - 1, *x.shape[2:]), x.dtype)

    def head(above: jax.Array, *below: jax.Array) -> jax.Array:
        return jnp.concatenate([above, x[:, : kernel_size - 1], *below], axis=1)[:, :kernel_size]

    def tail(above: jax.Array, below: jax.Array) -> jax.Array:
        return jnp.concatenate([above, x[:, 1 - kernel_size :], below], axis=1)[:, -kernel_size:]

    def compute_again(out: jax.Array, window: jax.Array, row: jax.Array | int) -> jax.Array:
        # The second row of positions is the first one whose window has no row of the padding.
        value = border(jnp.concatenate([skipped, window], axis=1), *weights)[:, 1:2]
        return jax.lax.dynamic_update_slice_in_dim(out, value, row, axis=1)

    down = [(device, device + 1) for device in range(row_devices() - 1)]
    up = [(after, before) for before, after in down]
    last = out.shape[1] - 1
    if kernel_size <= stride + 1:  # no window reaches below
        return compute_again(out, head(_sent(x[:, -1:], down)), 0)
    if len(down) == 1:  # two devices swap a row in one message, and each has one border
        is_first = jax.lax.axis_index(SEQUENCE_AXIS) == 0
        other = _sent(jnp.where(is_first, x[:, -1:], x[:, :1]), down + up)
        zeros = jnp.zeros_like(other)
        window = jnp.where(is_first, tail(zeros, other), head(other, zeros))
        return compute_again(out, window, jnp.where(is_first, last, 0))
    above, below = _sent(x[:, -1:], down), _sent(x[:, :1], up)
    out = compute_again(out, head(above, below), 0)
    return compute_again(out, tail(above, below), last)


def _sent(row: jax.Array, pairs: Sequence[tuple[int, int]]) -> jax.Array:
    """Returns the row that another device sends to this one; zeros if no pair sends one."""
    return jax.lax.ppermute(row, SEQUENCE_AXIS, pairs)


def check_rows(height: int, stride: int) -> None:
    """Checks that the devices of the ambient mesh can share the rows of an image.

    Args:
        height: rows of the images.
        stride: the largest stride of the model.

    Raises:
        ConfigError: the rows do not divide; the message has the nearest heights that do.
    """
    devices = row_devices()
    multiple = devices * stride
    if devices > 1 and height % multiple:
        below = height // multiple * multiple
        near = f"{below} or {below + multiple}" if below else f"{multiple}"
        raise ConfigError(
            f"{height} rows of an image cannot be split over {devices} devices by a model of "
            f"stride {stride}: use a multiple of {multiple} rows, for example {near}, or lower "
            "config.mesh.sequence"
        )


def row_devices() -> int:
    """Returns the number of devices of the ambient mesh that share the rows of an image."""
    return jax.sharding.get_abstract_mesh().shape.get(SEQUENCE_AXIS, 1)


def _is_split() -> bool:
    """Returns whether this is traced for one of several devices that share an image."""
    mesh = jax.sharding.get_abstract_mesh()
    return SEQUENCE_AXIS in mesh.manual_axes and mesh.shape[SEQUENCE_AXIS] > 1
