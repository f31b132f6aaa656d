"""Saving figures. They are drawn without pyplot, which would keep them and want a display."""

import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, whatever script the names in it are in; makes its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Matplotlib's font lacks some scripts and draws boxes for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=120)
