"""The baseline of segmentation that knows single pixels."""

import numpy as np

from benchmarks import pixel_baseline
from vig_jax.data import DatasetInfo


class Halves:
    """Images of two colours; the class is that of the colour if `by_colour`, else of the half."""

    info = DatasetInfo("halves", "halves 1", {"class_names": ("left", "right")})

    def __init__(self, by_colour):
        self.by_colour = by_colour

    def __len__(self):
        return 6

    def __getitem__(self, index):
        right = np.broadcast_to(np.arange(8) >= 4, (8, 8))
        bright = right if self.by_colour and index % 2 else ~right
        mask = bright if self.by_colour else right
        return {"image": np.where(bright[..., None], 200, 20).repeat(3, -1), "mask": mask + 0}


def test_colours_and_positions_are_known(monkeypatch, capsys):
    for by_colour in (True, False):
        monkeypatch.setattr(
            pixel_baseline, "open_dataset", lambda data, split, by=by_colour: Halves(by)
        )
        assert pixel_baseline.main([]) == 0
        assert "miou 1.0000  macc 1.0000  aacc 1.0000" in capsys.readouterr().out
