"""timm's models at PyTorch's best: bfloat16, fused attention, eager and compiled."""

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import timm
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.candidates import Candidate
from vig_jax.bench.programs import DROP_PATH, INPUTS, TRAIN_MACS
from vig_jax.errors import ConfigError
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
_EMA_WEIGHT = 1e-4  # weight of the new parameters in the EMA


def check(names: Sequence[str]) -> None:
    """Refuses models that cannot run here.

    Raises:
        ConfigError: a name is unknown, or there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise ConfigError("PyTorch sees no CUDA device, which the peers need; --models vig_t runs")
    if unknown := [name for name in names if not timm.is_model(name)]:
        raise ConfigError(f"timm {timm.__version__} has no model {', '.join(unknown)}")


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that run the peers."""
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "torch_cuda": str(torch.version.cuda),
        "torch_cudnn": str(torch.backends.cudnn.version()),
    }


def free() -> None:
    """Frees the memory of candidates that are no longer referenced."""
    gc.collect()
    torch.compiler.reset()  # compiled programs, and the memory of their CUDA graphs
    gc.collect()
    torch.cuda.empty_cache()


def candidates(
    name: str,
    *,
    image_size: int,
    batch_size: int,
    train: bool,
    compile_mode: str | None,
    attention: str,
) -> Iterator[Candidate | str]:
    """Yields each variant of a model, with shared parameters, or why it is not measured.

    Args:
        name: timm's name of the model.
        image_size: side in pixels.
        batch_size: images per call.
        train: time forward, backward, AdamW and EMA instead of logits.
        compile_mode: mode of `torch.compile`; None: eager only.
        attention: a key of `ATTENTION`, for models whose attention has no bias.
    """
    if name.startswith("swin_") and image_size != 224:
        yield f"{name}: only at 224 pixels"
        return
    torch.backends.cudnn.benchmark = True
    channels_last = name.startswith("convnext")
    try:
        images = _images(batch_size, image_size, channels_last=channels_last)
        before = torch.cuda.memory_allocated()
        model = _model(name, image_size, channels_last=channels_last)
        flops = _flops(model, image_size) * (TRAIN_MACS if train else 1)
        start, forward = _training(model, batch_size) if train else _inference(model)
    except RuntimeError as error:  # out of memory
        yield f"{name}: not measured: {_first_line(error)}"
        return
    fused = _attention(name, attention)
    variants = {"eager": forward}
    if compile_mode:
        compiled = torch.compile(forward, mode=compile_mode, dynamic=False)
        variants[f"compiled ({compile_mode})"] = compiled
    for variant, one in variants.items():
        run = _runner(start, one, images, fused)
        try:
            with fused():
                finite = bool(torch.isfinite(start(one, images[0])).all())  # compiles
            torch.cuda.reset_peak_memory_stats()
            run(3)
        except RuntimeError as error:  # out of memory, or raised by the compiler
            yield f"{name}, {variant}: not measured: {_first_line(error)}"
            continue
        if not finite:
            yield f"{name}, {variant}: not measured: results are not finite"
            continue
        yield Candidate(
            name=name,
            variant=variant,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            memory_bytes=torch.cuda.max_memory_allocated() - before + images[0].nbytes,
            flops=flops,
            run=run,
        )


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0]


def _images(batch_size: int, side: int, *, channels_last: bool) -> list[torch.Tensor]:
    """Draws batches of random pixels, uint8 [B, 3, side, side]."""
    generator = torch.Generator("cuda").manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch_size, 3, side, side)
    return [
        torch.randint(
            0, 256, shape, dtype=torch.uint8, device="cuda", generator=generator
        ).contiguous(memory_format=layout)
        for _ in range(INPUTS)
    ]


def _model(name: str, side: int, *, channels_last: bool) -> torch.nn.Module:
    # Convolutional models take images of any size and have no `img_size`.
    sizes = {} if channels_last else {"img_size": side}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000, drop_path_rate=DROP_PATH, **sizes)
    layout = torch.channels_last if channels_last else torch.preserve_format
    return model.to("cuda", memory_format=layout)


def _attention(name: str, choice: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Restricts scaled_dot_product_attention to one kernel, if that kernel can serve the model."""
    if name.startswith(("deit_", "vit_")):
        return lambda: sdpa_kernel(ATTENTION[choice])
    return contextlib.nullcontext  # swin adds a bias, which these kernels do not take


def _flops(model: torch.nn.Module, side: int) -> int:
    """Counts the operations of one image's logits: products, convolutions and attention."""
    image = torch.zeros(1, 3, side, side, device="cuda")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return counter.get_total_flops()


def _normalised(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Does what `vig_jax.layers.pixels.normalise` does, in bfloat16, which holds 0 to 255."""
    return pixels.to(torch.bfloat16) * scale + shift


def _constants() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the factor and the summand of the normalisation, [3, 1, 1]."""
    mean, std = (torch.tensor(x, device="cuda") for x in (IMAGENET_MEAN, IMAGENET_STD))
    pair = 1 / (255 * std), -mean / std
    scale, shift = (x.to(torch.bfloat16)[:, None, None] for x in pair)
    return scale, shift


Start = Callable[[Any, torch.Tensor], torch.Tensor]
"""Starts one call of a forward function on a batch of pixels; returns what must be finite."""


def _inference(model: torch.nn.Module) -> tuple[Start, Any]:
    """Prepares inference, pixels to logits, all in bfloat16."""
    model.eval().to(torch.bfloat16)
    scale, shift = _constants()

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        return model(_normalised(pixels, scale, shift))

    def start(forward: Any, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return forward(pixels)

    return start, logits


def _training(model: torch.nn.Module, batch_size: int) -> tuple[Start, Any]:
    """Prepares a step: float32 parameters, bfloat16 computation, AdamW, EMA of the parameters."""
    model.train()
    scale, shift = _constants()
    parameters = list(model.parameters())
    ema = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True)

    def loss_fn(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(_normalised(pixels, scale, shift))
        return functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)

    labels = torch.randint(0, 1000, (batch_size,), device="cuda")

    def start(forward: Any, pixels: torch.Tensor) -> torch.Tensor:
        loss = forward(pixels, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, parameters, _EMA_WEIGHT)
        return loss.detach()

    return start, loss_fn


def _runner(
    start: Start,
    forward: Any,
    images: Sequence[torch.Tensor],
    fused: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Callable[[int], None]:
    batches = itertools.cycle(images)

    def run(calls: int) -> None:
        with fused():
            for _ in range(calls):
                torch.compiler.cudagraph_mark_step_begin()
                start(forward, next(batches))
        torch.cuda.synchronize()

    return run
