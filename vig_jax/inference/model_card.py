"""The README of a hub folder: what is in it, how good it is, and how to use it."""

from vig_jax.inference.loaded_model import LoadedModel

# Kinds of models on the Hugging Face Hub, by task.
_PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
UNKNOWN_LICENCE = "unknown"
_CARD = """\
---
library_name: vig_jax
{pipeline}license: {licence}
tags:
- vig
- jax
- flax
---

# {name}

ViG (gated linear attention for images) for {task}, in JAX and Flax.

| | |
|---|---|
| model | `{name}`, {classes} classes |
| weights | {weights} |{trained_on}

## Results

{results}

## Images

{images}

## Use

```python
import jax
import vig_jax
{imports}
loaded = vig_jax.from_pretrained("PATH OR OWNER/NAME")
outputs = jax.jit(loaded.model.apply)(loaded.variables, images)
```

```
vig predict PATH photo.jpg{options}
```

## Licence

{licence_text}
"""


def model_card(loaded: LoadedModel, licence: str) -> str:
    """Returns the text of the card, in Markdown with the Hub's fields at the top.

    Args:
        loaded: with the metrics that were measured, if any were.
        licence: an identifier of the Hub, e.g. "apache-2.0".
    """
    config, kinds = loaded.config, {True: "EMA", False: "raw", None: "unknown whether EMA or raw"}
    pipeline = _PIPELINES.get(config.task.name)
    updates = f", after {loaded.step} updates" if loaded.step else ""
    return _CARD.format(
        pipeline=f"pipeline_tag: {pipeline}\n" if pipeline else "",
        licence=licence,
        name=config.model.name,
        task=config.task.name,
        imports="".join(f"import {name}  # code of the model\n" for name in config.plugins),
        options="".join(f" --plugin {name}" for name in config.plugins),
        classes=config.model.num_classes or "no",
        weights=kinds[loaded.ema] + updates,
        trained_on=f"\n| trained on | `{config.data.source}` |" if loaded.step else "",
        results=_results(loaded),
        images=_images(loaded),
        licence_text=_licence_text(licence),
    )


def _results(loaded: LoadedModel) -> str:
    if not loaded.metrics:
        return "No metrics are stored with these weights."
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in loaded.metrics.items())
    return (
        f"| metric | value |\n|---|---|\n{rows}\n\nThose of a run are measured on its "
        "evaluation data; others are as stated by whoever wrote this folder. Accuracies, IoU and "
        "AP are fractions."
    )


def _images(loaded: LoadedModel) -> str:
    data, task = loaded.config.data, loaded.config.task.name
    height, width = data.eval_size or (data.image_size,) * 2
    pixels = (
        f"RGB, scaled to [0, 1]; the mean {_numbers(data.mean)} is subtracted, and the result is "
        f"divided by {_numbers(data.std)}."
    )
    if task != "classification":
        return f"{pixels} Sizes: the section `config.task` of `config.json`."
    if data.native_sizes:
        return (
            "The whole image in its own size, made smaller (bicubic) if it has too many patches: "
            f"see `data.max_tokens` in `config.json`. {pixels}"
        )
    return (
        f"{height} x {width} pixels: the shorter side is resized (bicubic) to the crop divided by "
        f"{data.crop_pct:g}, and the middle is cropped. {pixels}"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _licence_text(licence: str) -> str:
    if licence != UNKNOWN_LICENCE:
        return f"The weights are under the licence `{licence}`."
    return (
        "No licence is stated for these weights: ask whoever made them before you pass them on. "
        "Under which licence the files of hustvl/ViG may be used is unclear, and so it is for "
        "weights that were made from them."
    )
