"""timm's models at PyTorch's best: bfloat16, fused attention, eager and compiled."""

import contextlib
import dataclasses
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import timm
import torch
from timm.utils.model import reparameterize_model
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.candidates import Candidate
from vig_jax.bench.latency import HostCall
from vig_jax.bench.programs import DROP_PATH, INPUTS, TRAIN_MACS
from vig_jax.errors import ConfigError
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
DEVICE = "cuda"
_TOKEN_MODELS = ("deit", "vit_", "swin_", "hiera_", "levit_")  # rows of tokens, of a given size
_EMA_WEIGHT = 1e-4  # weight of the new parameters in the EMA


def check(names: Sequence[str]) -> None:
    """Refuses models that cannot run here.

    Raises:
        ConfigError: a name is unknown, or there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise ConfigError("PyTorch sees no CUDA device, which the peers need")
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
    eager: bool = True,
) -> Iterator[Candidate | str]:
    """Yields each variant of a model, with shared parameters, or why it is not measured.

    For inference, timm merges branches and norms into convolutions where a model can do that.

    Args:
        name: timm's name of the model.
        image_size: side in pixels.
        batch_size: images per call.
        train: time forward, backward, AdamW and EMA instead of logits.
        compile_mode: mode of `torch.compile`; None: eager only.
        attention: a key of `ATTENTION`, for models whose attention has no bias.
        eager: also yield the eager variant.
    """
    tokens = name.startswith(_TOKEN_MODELS)

    def prepare(pixels: torch.Tensor) -> Prepared:
        try:
            model = _model(name, image_size if tokens else None, train=train)
            flops = count_flops(model, image_size, image_size) * (TRAIN_MACS if train else 1)
            start, forward = (
                _training(model, batch_size) if train else _inference(model, pixels[:1])
            )
        except (TypeError, ValueError, AssertionError) as error:
            # The model does not take this size or, in training, drop path.
            raise RuntimeError(str(error)) from error
        return Prepared(model, start, forward, flops)

    yield from variants(
        name,
        prepare,
        image_size=(image_size, image_size),
        batch_size=batch_size,
        channels_last=not tokens,
        compile_modes=[compile_mode] if compile_mode else [],
        fused=_attention(name, attention),
        eager=eager,
    )


Start = Callable[[Any, torch.Tensor], torch.Tensor]
"""Starts one call of a forward function on a batch of pixels; returns what must be finite."""
Fused = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model on the device, before it is compiled.

    Attributes:
        model: the module with all parameters.
        start: starts one call.
        forward: the function of a batch that `start` calls, eager.
        flops: operations for one image.
    """

    model: torch.nn.Module
    start: Start
    forward: Any
    flops: int


def variants(
    name: str,
    prepare: Callable[[torch.Tensor], Prepared],
    *,
    image_size: tuple[int, int],
    batch_size: int,
    compile_modes: Sequence[str],
    channels_last: bool = True,
    fused: Fused = contextlib.nullcontext,
    eager: bool = True,
) -> Iterator[Candidate | str]:
    """Yields a model in eager mode and in each mode of `torch.compile`, or why it is not measured.

    Args:
        name: for the table.
        prepare: makes the model; gets a batch of pixels.
        image_size: height and width, pixels.
        batch_size: images per call.
        compile_modes: modes of `torch.compile`; none: eager only.
        channels_last: memory layout of the pixels.
        fused: makes a context in which the model runs.
        eager: yield the eager variant, too.
    """
    try:
        images = random_images(batch_size, *image_size, channels_last=channels_last)
        before = torch.cuda.memory_allocated()
        prepared = prepare(images[0])
    except RuntimeError as error:  # out of memory, or results that are not finite
        yield f"{name}: not measured: {_first_line(error)}"
        return
    torch.backends.cudnn.benchmark = True
    forwards = {"eager": prepared.forward} if eager else {}
    for mode in compile_modes:
        compiled = torch.compile(prepared.forward, mode=mode, dynamic=False)
        forwards[f"compiled ({mode})"] = compiled
    for variant, one in forwards.items():
        run = _runner(prepared.start, one, images, fused)
        try:
            with fused():
                finite = bool(torch.isfinite(prepared.start(one, images[0])).all())  # compiles
            torch.cuda.reset_peak_memory_stats()
            run(3)
        except RuntimeError as error:  # out of memory, or raised by the compiler
            yield f"{name}, {variant}: not measured: {_first_line(error)}"
            continue
        if not finite:
            yield f"{name}, {variant}: not measured: results are not finite"
            continue
        peak = torch.cuda.max_memory_allocated() - before
        yield Candidate(
            name=name,
            variant=variant,
            parameters=sum(parameter.numel() for parameter in prepared.model.parameters()),
            memory_bytes=peak + images[0].nbytes,
            flops=prepared.flops,
            run=run,
            host=_host_call(prepared.start, one, images[0], fused),
        )


def _first_line(error: RuntimeError) -> str:
    """Returns the first line of a message."""
    return str(error).strip().partition("\n")[0]


def random_images(
    batch_size: int, height: int, width: int, *, channels_last: bool
) -> list[torch.Tensor]:
    """Draws batches of random pixels, uint8 [B, 3, height, width]."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch_size, 3, height, width)
    return [
        torch.randint(
            0, 256, shape, dtype=torch.uint8, device=DEVICE, generator=generator
        ).contiguous(memory_format=layout)
        for _ in range(INPUTS)
    ]


def _model(name: str, side: int | None, *, train: bool) -> torch.nn.Module:
    """Makes a timm model with random weights on the device.

    Args:
        name: timm's name.
        side: of the images, for models that are made for one size; None for convolutional models,
            which are in channels-last layout.
        train: with drop path; otherwise merged for inference.
    """
    options: dict[str, Any] = {"drop_path_rate": DROP_PATH} if train else {}
    if side is not None:
        options["img_size"] = side
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000, **options)
    if not train:
        model = reparameterize_model(model.eval())
    layout = torch.preserve_format if side else torch.channels_last
    return model.to(DEVICE, memory_format=layout)


def _attention(name: str, choice: str) -> Fused:
    """Restricts scaled_dot_product_attention to one kernel, if that kernel can serve the model."""
    if name.startswith(("deit_", "vit_")):
        return lambda: sdpa_kernel(ATTENTION[choice])
    return contextlib.nullcontext  # swin adds a bias, which these kernels do not take


def count_flops(model: torch.nn.Module, height: int, width: int) -> int:
    """Counts the operations of one image's logits: products, convolutions and attention."""
    return flops_of(model.eval(), torch.zeros(1, 3, height, width, device=DEVICE))


def flops_of(forward: Callable[[torch.Tensor], Any], image: torch.Tensor) -> int:
    """Counts the operations of a function of one image: products, convolutions and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(image)
    return counter.get_total_flops()


def normalisation() -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what does `vig_jax.layers.pixels.normalise`, in bfloat16, which holds 0 to 255."""
    mean, std = (torch.tensor(x, device=DEVICE) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pair = 1 / (255 * std), -mean / std
    scale, shift = (x.to(torch.bfloat16)[:, None, None] for x in pair)
    return lambda pixels: pixels.to(torch.bfloat16) * scale + shift


def _inference(model: torch.nn.Module, one: torch.Tensor) -> tuple[Start, Any]:
    """Prepares inference, pixels to logits, all in bfloat16.

    Attention biases that a model caches in its first call are not part of the compiled program:
    those cached in float32 while operations were counted are dropped, and an image is run.

    Args:
        model: on the device.
        one: the pixels of an image.
    """
    model.train()
    model.eval().to(torch.bfloat16)
    normalise = normalisation()

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        return model(normalise(pixels))

    start_inference(forward, one)
    return start_inference, forward


def start_inference(forward: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Calls `forward` in inference mode."""
    with torch.inference_mode():
        return forward(pixels)


def _training(model: torch.nn.Module, batch_size: int) -> tuple[Start, Any]:
    """Prepares a step of classification, in bfloat16 with float32 parameters."""
    model.train()
    normalise = normalisation()

    def loss_fn(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = model(normalise(pixels))
        return functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)

    labels = torch.randint(0, 1000, (batch_size,), device=DEVICE)
    return training_start(list(model.parameters()), labels, ema=True), loss_fn


def training_start(parameters: Sequence[torch.nn.Parameter], targets: Any, *, ema: bool) -> Start:
    """Returns what starts a training step: loss, gradients, AdamW and, if `ema`, EMA weights.

    The learning rate is 0, so that all steps are alike. With 1e-3, a detector's regions fall onto a
    few places within a few steps on the same images, and its gradient of RoIAlign then takes ten
    times as long.

    Args:
        parameters: all parameters, float32.
        targets: second argument of the loss function.
        ema: keep a moving average of the parameters.
    """
    averages = [parameter.detach().clone() for parameter in parameters] if ema else []
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.05, fused=True)

    def start(forward: Any, pixels: torch.Tensor) -> torch.Tensor:
        loss = forward(pixels, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, _EMA_WEIGHT)
        return loss.detach()

    return start


def _runner(
    start: Start, forward: Any, images: Sequence[torch.Tensor], fused: Fused
) -> Callable[[int], None]:
    batches = itertools.cycle(images)

    def run(calls: int) -> None:
        with fused():
            for _ in range(calls):
                torch.compiler.cudagraph_mark_step_begin()
                start(forward, next(batches))
        torch.cuda.synchronize()

    return run


def _host_call(start: Start, forward: Any, pixels: torch.Tensor, fused: Fused) -> HostCall | None:
    """Returns the steps of one call of inference; the pixels are in pinned memory of the host."""
    if start is not start_inference:
        return None
    on_host = pixels.cpu().pin_memory() if pixels.is_cuda else pixels
    channels_last = pixels.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def call(images: torch.Tensor) -> torch.Tensor:
        with fused():
            torch.compiler.cudagraph_mark_step_begin()
            return start(forward, images)

    return HostCall(
        put=lambda: on_host.to(DEVICE, non_blocking=True, memory_format=layout),
        start=call,
        wait=lambda _: torch.cuda.synchronize(),
        fetch=lambda results: results.cpu(),
    )
