"""The mixer in plain XLA around the scan without loops, for translation to other formats."""

from jaxtyping import Array, Float, Int

from ..core.device import Device
from ..gla import xla_unrolled as gla
from .reference import compose
from .spec import MixerInputs, MixerSpec

PLATFORMS = None


def supports(spec: MixerSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: MixerSpec, inputs: MixerInputs, cu_seqlens: Int[Array, " M"] | None = None
) -> Float[Array, "B T O"]:
    """Computes the mixer; see `kernels_pallas.vig_mixer.api.vig_mixer`."""
    return compose(spec, gla.run, inputs, cu_seqlens)
