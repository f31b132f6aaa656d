"""Makes and saves figures, without pyplot, which would keep them and need a display.

Matplotlib is imported with the first figure: importing it takes as long as importing JAX.
"""

import functools
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vig_jax.text import printable, printable_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

DPI = 120
"""Pixels per inch of all figures."""


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure whose parts are laid out without overlaps.

    Args:
        width: in inches.
        height: in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a PNG, with text in any script; creates its folder.

    All text is drawn literally: a $ begins no formula, and control characters are escaped. An
    installed font is looked for if the default font lacks a letter.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    for text in texts:
        text.set_parse_math(False)
        text.set_text(printable_lines(text.get_text()))
    letters = "".join(sorted({letter for text in texts for letter in text.get_text()}))
    if fallback := font_families(letters):
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *fallback])
    with warnings.catch_warnings():
        # `font_families` has reported letters that no font has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=DPI)


def drawable(name: str, limit: int) -> str:
    """Returns a name with control characters escaped; an ellipsis ends what exceeds the limit."""
    name = printable(name)
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def font_families(letters: str) -> list[str]:
    """Returns the families of `font_files`."""
    from matplotlib import font_manager

    return [font_manager.get_font(file).family_name for file in font_files(letters)]


@functools.lru_cache(maxsize=64)
def font_files(letters: str) -> list[str]:
    """Returns installed fonts that have the letters which the default font lacks.

    Letters that no installed font has are drawn as boxes and reported once.

    Args:
        letters: that are to be drawn.

    Returns:
        Font files, those with most of the letters first; empty if the default font is enough.
    """
    from matplotlib import font_manager

    known = _code_points(default_font())
    lacking = {ord(letter) for letter in letters if letter.isprintable()} - known
    found: list[str] = []
    if lacking:
        candidates = {file: _code_points(file) for file in font_manager.findSystemFonts()}
        while lacking and candidates:
            best = max(candidates, key=lambda file: len(lacking & candidates[file]))
            if not lacking & candidates[best]:
                break
            found.append(best)
            lacking -= candidates.pop(best)
    if lacking:
        shown = "".join(chr(code) for code in sorted(lacking)[:10])
        logger.warning(
            "no installed font has %d of the letters of a figure (%s), which are drawn as boxes: "
            "install one, e.g. fonts-noto-cjk",
            len(lacking),
            shown,
        )
    return found


def default_font() -> str:
    """Returns the file of Matplotlib's default font."""
    from matplotlib import font_manager, rcParams

    return font_manager.findfont(font_manager.FontProperties(family=rcParams["font.family"]))


def _code_points(file: str) -> set[int]:
    """Returns the letters of a font; none if the file cannot be read."""
    from matplotlib import font_manager

    try:
        return set(font_manager.get_font(file).get_charmap())
    except (OSError, RuntimeError):
        return set()
