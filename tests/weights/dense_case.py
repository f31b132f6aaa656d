"""Small segmenters and detectors, and variables in which no two arrays are alike."""

import functools

import jax
import numpy as np

import vig_jax

PLAIN = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 1}
FOUR = {"embed_dims": (16,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4}


def _sizes(**heads):
    heads |= {"channels": 8, "num_classes": 3, "gla_implementation": "reference"}
    return {"vig_t": heads | PLAIN, "vig_h_t": heads | FOUR}


SEGMENTERS = _sizes(aux_channels=4)
DETECTORS = _sizes(box_channels=4)


@functools.cache
def segmenter(name):
    return _with_variables(vig_jax.create_segmenter(name, **SEGMENTERS[name]))


@functools.cache
def detector(name):
    return _with_variables(vig_jax.create_detector(name, **DETECTORS[name]))


def _with_variables(model):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    generator = np.random.default_rng(0)
    values = jax.tree.map(lambda x: generator.uniform(0.5, 1, x.shape).astype(x.dtype), shapes)
    return model, dict(values)
