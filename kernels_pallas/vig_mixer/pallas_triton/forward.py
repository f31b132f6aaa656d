"""Forward kernel of the blend."""

import functools

import jax

from ...core import triton
from ...core.named_refs import Refs, launch
from ..spec import MixerInputs, MixerSpec
from .blend import blend, blend_inputs
from .config import FORWARD, BlendConfig
from .rows import RowLoop


def forward(
    spec: MixerSpec,
    scans: list[jax.Array],
    inputs: MixerInputs,
    *,
    total: bool,
    config: BlendConfig = FORWARD,
) -> tuple[jax.Array, jax.Array]:
    """Blends the scans' sum with the local map.

    Args:
        spec: The call.
        scans: One or two addends [B, T, H, V] of the scans' sum.
        inputs: Arrays of the operator.
        total: Also return the sum [B, T, H, V] of two scans. It is written to the memory of the
            first, which is consumed.
        config: Tiling of the kernel.

    Returns:
        The blend [B, T, D]; and the sum, or the first scan if the sum was not asked for.
    """
    loop = RowLoop.from_config(spec, config)
    arrays = blend_inputs(spec, scans, inputs)
    rows = jax.ShapeDtypeStruct((spec.rows, spec.value_width), spec.dtype)
    writes_total = total and len(scans) > 1
    results = launch(
        functools.partial(_kernel, loop=loop),
        name="vig_mixer_blend",
        programs=loop.programs,
        inputs=arrays,
        outputs={"blend": rows, "total": rows if writes_total else None},
        num_warps=config.num_warps,
        num_stages=1,
        start_from={"total": arrays["scans"][0]} if writes_total else None,
    )
    scanned = results["total"].reshape(scans[0].shape) if writes_total else scans[0]
    return results["blend"].reshape(inputs.local.shape), scanned


def _kernel(ref: Refs, *, loop: RowLoop) -> None:
    program = triton.program_id(0)

    def step(n, _):
        rows = loop.block(program, n)
        x = blend(loop.spec, rows, ref)
        if ref["total"] is not None:
            rows.write(ref["total"], x.scan.value)
        out = x.blended
        if loop.spec.activation:
            out = out * triton.sigmoid(out)
        rows.write(ref["blend"], out)

    jax.lax.fori_loop(0, loop.steps, step, None)
