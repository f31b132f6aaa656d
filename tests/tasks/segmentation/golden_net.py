"""The small network of the golden cases of inference, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import golden_seg
from vig_jax.sharding.mesh import place_batch
from vig_jax.tasks.segmentation.label_maps import Inference, LabelMaps, confusion_counts


def network(arrays):
    """Returns `logits_of(variables, images)` with the weights of a golden file, stride 4."""

    def kernel(name):
        return golden_seg.hwio(arrays[f"param/{name}.weight"])

    bn = "decode_head.convs.0.bn"
    parts = {
        "stem": kernel("backbone.conv"),
        "stem_bias": arrays["param/backbone.conv.bias"],
        "conv": kernel("decode_head.convs.0.conv"),
        "scale": arrays[f"param/{bn}.weight"],
        "bias": arrays[f"param/{bn}.bias"],
        "mean": arrays[f"buffer/{bn}.running_mean"],
        "var": arrays[f"buffer/{bn}.running_var"],
        "seg": kernel("decode_head.conv_seg"),
        "seg_bias": arrays["param/decode_head.conv_seg.bias"],
    }

    def logits_of(variables, images):
        p = {name: jnp.asarray(x, images.dtype) for name, x in variables.items()}
        x = jnp.tanh(_conv(images, p["stem"], 4) + p["stem_bias"])
        x = (_conv(x, p["conv"], 1) - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5)
        x = jax.nn.relu(x * p["scale"] + p["bias"])
        return _conv(x, p["seg"], 1) + p["seg_bias"]

    return logits_of, parts


def _conv(x, kernel, stride):
    padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


class Batches:
    """Images of one bucket: their windows lie the same, their sizes differ."""

    crop, stride = (16, 12), (8, 8)
    canvas = (24, 20)  # two windows along each axis
    sizes = 2 * ((24, 20), (17, 13), (20, 17), (24, 13))
    originals = (*((30, 9), (11, 26), (20, 17), (3, 4)), *((1, 32), (32, 1), (9, 9), (24, 13)))
    shape = (32, 32)

    def __init__(self, scales=1, fill=0.0):
        rng = np.random.default_rng(3)
        self.batch = {"original": np.array(self.originals, np.int32)}
        for i in range(scales):
            canvas = np.full((8, *self.canvas, 3), fill, np.float32)
            for row, (height, width) in enumerate(self.sizes):
                canvas[row, :height, :width] = rng.normal(size=(height, width, 3))
            end = f"_{i}" if scales > 1 else ""
            sizes = np.array(self.sizes, np.int32)
            self.batch |= {f"image{end}": canvas, f"size{end}": sizes}
        self.batch["mask"] = rng.integers(0, 5, (8, *self.shape)).astype(np.uint8)
        for row, (height, width) in enumerate(self.originals):
            self.batch["mask"][row, height:] = self.batch["mask"][row, :, width:] = 255

    def run(self, mesh=None, **inference):
        logits_of, variables = network(golden_seg.load("slide").arrays)
        classes = golden_seg.facts("slide")["num_classes"]
        maps = LabelMaps(
            logits_of,
            Inference(self.crop, self.stride, **inference),
            lambda labels, row: (labels, confusion_counts(labels, row["mask"], classes)),
            ("mask",),
        )
        if mesh:
            return maps.compiled(mesh)(variables, place_batch(self.batch, mesh), self.shape)
        return jax.jit(maps, static_argnums=2)(variables, self.batch, self.shape)
