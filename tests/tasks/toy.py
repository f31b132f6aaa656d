"""A small task that shares nothing with classification: finding bright squares, pixel by pixel.

Its labels are masks, its model has batch statistics, and its metric, the average precision over all
pixels, needs every prediction on the host. It is registered on import, as a user's task would be.
"""

import dataclasses
import functools
import itertools
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from vig_jax.config import TaskConfig
from vig_jax.data import DatasetInfo, register_dataset
from vig_jax.figures import save_figure
from vig_jax.metrics.states import RowsEvaluation, joined
from vig_jax.tasks.protocol import Aux
from vig_jax.tasks.registry import Panel, ReportSpec, TaskBundle, TaskEntry, register_task

SIDE = 8
IMAGE = jax.ShapeDtypeStruct((SIDE, SIDE, 3), np.uint8)
MASK = jax.ShapeDtypeStruct((SIDE, SIDE), np.int32)
RESULTS = "precision.npz"


@dataclasses.dataclass(frozen=True)
class SquaresConfig(TaskConfig):
    """Settings of the task."""

    width: int = 4  # channels of the model


class Squares:
    """Noisy images, each with one bright square of 3 x 3 pixels.

    If the environment variable SQUARES_KILL_AT is n, reading the n-th training image kills the
    process, as a machine that loses power would; or sends it the signal of SQUARES_SIGNAL.
    """

    def __init__(self, split):
        self.split = split
        self.kill_at = int(os.environ.get("SQUARES_KILL_AT", 0)) if split == "train" else 0
        self.reads = itertools.count(1)

    @property
    def info(self):
        return DatasetInfo(f"squares {self.split}", f"squares {self.split} 1", {"sides": [3]})

    def __len__(self):
        return 24 if self.split == "train" else 10

    def __getitem__(self, index):
        if next(self.reads) == self.kill_at:
            os.kill(os.getpid(), signal.Signals[os.environ.get("SQUARES_SIGNAL", "SIGKILL")])
        rng = np.random.default_rng([index, self.split == "train"])
        image = rng.integers(0, 160, (SIDE, SIDE, 3)).astype(np.uint8)
        mask = np.zeros((SIDE, SIDE), np.int32)
        top, left = rng.integers(0, SIDE - 3, 2)
        mask[top : top + 3, left : left + 3] = 1
        image[mask == 1] += 80
        return {"image": image, "mask": mask}

    def name_of(self, index):
        return f"{self.split}/{index}"


@dataclasses.dataclass(frozen=True)
class Flip:
    """Flips image and mask alike in training."""

    spec = {  # noqa: RUF012
        "image": (IMAGE.shape, np.dtype(np.uint8)),
        "mask": (MASK.shape, np.dtype(np.int32)),
    }

    def __call__(self, example, rng):
        step = -1 if rng is not None and rng.random() < 0.5 else 1
        return {name: np.ascontiguousarray(x[:, ::step]) for name, x in example.items()}


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.width, (3, 3))(images.astype(jnp.float32) / 255)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        return nn.Conv(1, (3, 3))(x)[..., 0]


@dataclasses.dataclass(frozen=True)
class FindSquares:
    model: Net
    batch_spec = {"image": IMAGE, "mask": MASK}  # noqa: RUF012

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, *IMAGE.shape)))

    def loss(self, variables, batch, key):
        logits, mutable = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        losses = jnp.logaddexp(0.0, jnp.where(batch["mask"] == 1, -logits, logits))
        found = jnp.mean((logits > 0) == (batch["mask"] == 1))
        return jnp.mean(losses), Aux({"pixel_accuracy": found}, mutable)


@dataclasses.dataclass(frozen=True)
class PixelPrecision(RowsEvaluation):
    model: Net
    primary_metric = "average_precision"
    batch_spec = {"image": IMAGE, "mask": MASK}  # noqa: RUF012

    def predict(self, variables, batch):
        return {"logits": self.model.apply(variables, batch["image"]), "mask": batch["mask"]}

    def compute(self, state):
        rows = joined(state)
        order = np.argsort(-rows["logits"], axis=None, kind="stable")
        hits = rows["mask"].ravel()[order]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        return {"average_precision": float(np.mean(precision[hits == 1]))}

    def save(self, state, folder, description):
        np.savez(folder / RESULTS, description=description, **joined(state))


def draw(folder):
    if not (folder / RESULTS).exists():
        return []
    with np.load(folder / RESULTS) as stored:
        figure = Figure()
        figure.add_subplot().imshow(stored["logits"][0])
        figure.suptitle(str(stored["description"]))
    save_figure(figure, folder / "logits.png")
    return [folder / "logits.png"]


def make(config, metadata):
    assert metadata["sides"] == [3]
    model = Net(config.task.width)
    return TaskBundle(
        config=config,
        task=FindSquares(model),
        evaluation=PixelPrecision(model),
        train_preprocess=Flip(),
        eval_preprocess=Flip(),
        summary="one kind of square",
    )


REPORT = ReportSpec(
    primary_metric="average_precision",
    panels=(Panel("held-out precision", (("average_precision", "pixels"),)),),
    draw=draw,
)
register_task("squares", TaskEntry(make, REPORT), SquaresConfig)
register_dataset("squares", lambda data, split: Squares(split))


@functools.cache
def page():
    """Returns the settings of a run of 12 updates."""
    from vig_jax.config import recipes

    values = recipes.imagenet()
    values.task.name = "squares"
    values.task.width = 6
    values.data.source = "squares"
    values.data.workers = 0
    values.train.eval_every_epochs = 2
    values.optimizer.update(base_lr=0.05, lr_batch=8, warmup_epochs=0.0)
    values.train.update(
        batch_size=8, epochs=4, ema_decay=0.5, log_every_steps=1, checkpoint_every_steps=2
    )
    values.train.compilation_cache = ""
    return values
