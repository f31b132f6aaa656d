"""`load_weights`: published or converted weight files to variables."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from vig_jax.convert import upstream
from vig_jax.models import create_model


def load_weights(
    path: str | Path, model_name: str, num_classes: int = 1000, **overrides: Any
) -> dict[str, Any]:
    """Reads a weight file for a model.

    Args:
        path: a `.safetensors` file with upstream (hustvl/ViG) names.
        model_name: one of `vig_jax.list_models()`.
        num_classes: width of the head in the file.
        **overrides: as for `vig_jax.create_model`, where the weights are of another size.

    Returns:
        Variables for `create_model(model_name, num_classes, **overrides).apply`; leaves are numpy
        arrays of the file's dtype.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a readable `.safetensors` file, or names or shapes do not fit the model.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weight file at {path}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file with upstream names")
    try:
        state_dict = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error
    model = create_model(model_name, num_classes, **overrides)
    try:
        return {"params": upstream.to_params(state_dict, model)}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
