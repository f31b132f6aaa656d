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

    The device convolves its own rows meanwhile, with zeros around them. Then it computes the first
    and the last row of the result again, from one row of each neighbour, so no map is copied.

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
    reaches_below = kernel_size > stride + 1
    above, below = _neighbours(x, SEQUENCE_AXIS, reaches_below)
    # A window that begins in the second row of positions begins with the row `above`.
    skipped = jnp.zeros((x.shape[0], stride - 1, *x.shape[2:]), x.dtype)
    head = jnp.concatenate([above, x[:, : kernel_size - 1], *below], axis=1)[:, :kernel_size]
    first = border(jnp.concatenate([skipped, head], axis=1), *weights)[:, 1:2]
    out = jax.lax.dynamic_update_slice_in_dim(out, first, 0, axis=1)
    if reaches_below:
        tail = jnp.concatenate([above, x[:, 1 - kernel_size :], *below], axis=1)[:, -kernel_size:]
        last = border(jnp.concatenate([skipped, tail], axis=1), *weights)[:, 1:2]
        out = jax.lax.dynamic_update_slice_in_dim(out, last, out.shape[1] - 1, axis=1)
    return out


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


def _neighbours(x: jax.Array, axis: str, below: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns the last row of the device above, and if asked for the first row of that below.

    They are zeros where there is no such device.
    """
    devices = jax.lax.axis_size(axis)
    if devices == 2 and below:  # each sends one row: one message instead of two
        is_first = jax.lax.axis_index(axis) == 0
        sent = jnp.where(is_first, x[:, -1:], x[:, :1])
        row = jax.lax.ppermute(sent, axis, [(0, 1), (1, 0)])
        nothing = jnp.zeros_like(row)
        return jnp.where(is_first, nothing, row), (jnp.where(is_first, row, nothing),)
    down = [(device, device + 1) for device in range(devices - 1)]
    above = jax.lax.ppermute(x[:, -1:], axis, down)
    if not below:
        return above, ()
    return above, (jax.lax.ppermute(x[:, :1], axis, [(to, device) for device, to in down]),)
