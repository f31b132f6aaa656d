"""The mixer in plain XLA around the chunked scan: the portable form."""

from jaxtyping import Array, Float

from kernels_pallas.gla import xla_chunked as gla
from kernels_pallas.vig_mixer.reference import compose
from kernels_pallas.vig_mixer.spec import MixerSpec


def supports(spec: MixerSpec) -> str | None:
    """Serves every call."""
    return None


def vig_mixer(
    spec: MixerSpec,
    projected: Float[Array, "B T E"],
    local: Float[Array, "B T D"],
    gate_bias: Float[Array, " D"],
    decay_kernel: Float[Array, "R D"],
    decay_bias: Float[Array, " D"],
    scan_scale: Float[Array, " V"],
    local_scale: Float[Array, " V"],
    out_kernel: Float[Array, "D O"],
) -> Float[Array, "B T O"]:
    """See `kernels_pallas.vig_mixer.api.vig_mixer`."""
    weights = (gate_bias, decay_kernel, decay_bias, scan_scale, local_scale, out_kernel)
    return compose(spec, gla.bidirectional_gla, projected, local, *weights)
