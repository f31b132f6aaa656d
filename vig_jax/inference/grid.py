"""A figure of images with their predictions."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vig_jax.figures import new_figure, save_figure
from vig_jax.inference.file_predictor import FilePrediction

MAX_DRAWN = 40

_Prediction = TypeVar("_Prediction", bound=FilePrediction)


def draw_grid(
    predictions: Sequence[_Prediction],
    path: Path,
    draw_cell: Callable[[Any, _Prediction], None],
    *,
    columns: int,
    cell: tuple[float, float],
) -> int:
    """Writes a PNG of up to 40 predictions in rows.

    Args:
        predictions: those with an error are left out.
        path: of the PNG.
        draw_cell: draws a prediction into axes of Matplotlib.
        columns: the largest number of predictions in a row.
        cell: width and height of a prediction, inches.

    Returns:
        The number of predictions drawn.
    """
    shown = [prediction for prediction in predictions if not prediction.error][:MAX_DRAWN]
    columns = min(columns, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = new_figure(cell[0] * columns, cell[1] * rows)
    for number, prediction in enumerate(shown, start=1):
        draw_cell(figure.add_subplot(rows, columns, number), prediction)
    save_figure(figure, path)
    return len(shown)
