"""The mixer in plain XLA around the scan without loops, for translation to other formats."""

from jaxtyping import Array, Float, Int

from kernels_pallas.core.device import Device
from kernels_pallas.gla import xla_unrolled as gla
from kernels_pallas.vig_mixer.reference import compose
from kernels_pallas.vig_mixer.spec import MixerInputs, MixerSpec

PLATFORMS = None


def supports(spec: MixerSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: MixerSpec, inputs: MixerInputs, cu_seqlens: Int[Array, " M"] | None = None
) -> Float[Array, "B T O"]:
    """Computes the mixer; see `kernels_pallas.vig_mixer.api.vig_mixer`."""
    return compose(spec, gla.run, inputs, cu_seqlens)
