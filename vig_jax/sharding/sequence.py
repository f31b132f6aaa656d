"""Images whose rows are split over devices: what a layer needs from the devices beside it."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class ExchangeStates:
    """Passes the states of a scan between the devices of mesh axes; see `kernels_pallas.gla`.

    One all-gather of K (V + 1) numbers per head, image and direction, whatever the number of
    tokens. Each device then combines what lies before it. Decays are multiplied and never divided,
    so this is exact for all of them.

    Attributes:
        axes: names of the mesh axes that split the tokens, the first one the slowest.
    """

    axes: tuple[str, ...]

    def __call__(
        self,
        states: Float[Array, "N B H K V"],
        decays: Float[Array, "N B H K"],
        reverse: Sequence[bool],
    ) -> Float[Array, "N B H K V"]:
        """Returns the states that arrive at this device; see `kernels_pallas.gla.Exchange`."""
        own = jnp.concatenate([states, decays[..., None].astype(states.dtype)], axis=-1)
        every = jax.lax.all_gather(own, self.axes)
        here, devices = jax.lax.axis_index(self.axes), len(every)
        arriving = []
        for number, backwards in enumerate(reverse):
            state = jnp.zeros_like(states[number])
            for device in range(devices)[:: -1 if backwards else 1]:
                before = device > here if backwards else device < here
                part = every[device, number]
                state = jnp.where(before, part[..., -1:] * state + part[..., :-1], state)
            arriving.append(state)
        return jnp.stack(arriving)
