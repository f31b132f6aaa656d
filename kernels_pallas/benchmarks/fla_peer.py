"""flash-linear-attention's `chunk_gla` beside ours: the one file that needs PyTorch and fla.

Both directions are two calls, the second on flipped arrays, and a sum, as a user of a causal
operator writes it. The kernels tune themselves at the first call.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from fla.ops.gla import chunk_gla

from ..core.timing import Candidate

ONE_DIRECTION = "fla, one direction"


def results(
    op: str, arguments: Sequence[jax.Array], cotangent: jax.Array, images: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the output and the gradients of all arguments, of the batch's first images."""
    inputs = [_tensor(x).requires_grad_() for x in arguments]
    out, gradients = _with_gradients(_OPERATORS[op], inputs, _tensor(cotangent))
    return _array(out[:images]), [_array(x[:images]) for x in gradients]


def candidates(
    op: str,
    sets: Sequence[Sequence[jax.Array]],
    cotangents: Sequence[jax.Array] | None,
) -> Mapping[str, Candidate]:
    """Makes candidates of the operator and, for both directions, also of one direction alone.

    Args:
        op: "gla" or "bidirectional_gla".
        sets: Sets of arguments that calls cycle through.
        cotangents: A cotangent for each set, for the gradients; None for the forward pass alone.
    """
    tensors = [[_tensor(x) for x in arguments] for arguments in sets]
    outer = None if cotangents is None else [_tensor(x) for x in cotangents]
    runs = {"fla": _candidate(_OPERATORS[op], tensors, outer)}
    if op == "bidirectional_gla":
        first_four = [inputs[:4] for inputs in tensors]
        runs[ONE_DIRECTION] = _candidate(_gla, first_four, outer)
    return runs


def versions() -> str:
    """Describes the versions of its libraries."""
    import fla
    import triton

    version = getattr(fla, "__version__", "of unknown version")
    return f"torch {torch.__version__}, triton {triton.__version__}, fla {version}"


def _gla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor
) -> torch.Tensor:
    out, _ = chunk_gla(q, k, v, log_decay, scale=q.shape[-1] ** -0.5, output_final_state=False)
    return out


def _bidirectional_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay_fwd: torch.Tensor,
    log_decay_bwd: torch.Tensor,
) -> torch.Tensor:
    backwards = _gla(*(x.flip(1) for x in (q, k, v, log_decay_bwd)))
    return _gla(q, k, v, log_decay_fwd) + backwards.flip(1)


_OPERATORS: Mapping[str, Callable[..., torch.Tensor]] = {
    "gla": _gla,
    "bidirectional_gla": _bidirectional_gla,
}


def _with_gradients(
    operator: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], cotangent: torch.Tensor
) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    out = operator(*inputs)
    return out, torch.autograd.grad(out, inputs, cotangent)


def _candidate(
    operator: Callable[..., torch.Tensor],
    sets: Sequence[Sequence[torch.Tensor]],
    cotangents: Sequence[torch.Tensor] | None,
) -> Candidate:
    if cotangents is None:
        cycle: Any = itertools.cycle((inputs, None) for inputs in sets)
    else:
        leaves = [[x.detach().requires_grad_() for x in inputs] for inputs in sets]
        cycle = itertools.cycle(zip(leaves, cotangents, strict=True))

    def run(calls: int) -> None:
        for _ in range(calls):
            inputs, cotangent = next(cycle)
            if cotangent is None:
                with torch.no_grad():
                    operator(*inputs)
            else:
                _with_gradients(operator, inputs, cotangent)
        torch.cuda.synchronize()

    return run


def _tensor(x: jax.Array) -> torch.Tensor:
    """Copies an array for PyTorch, on the same device."""
    return torch.from_dlpack(x).clone()


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
