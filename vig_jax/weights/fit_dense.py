"""Fits the tensors of a weight file to a segmenter or detector, those of a classifier included."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vig_jax.errors import WeightsError
from vig_jax.models import Detector, Segmenter
from vig_jax.weights import fit_detector, fit_segmenter, mmdet, mmseg, upstream
from vig_jax.weights.dense import Variables
from vig_jax.weights.detectors import names_of
from vig_jax.weights.fit import WeightFile, check_model_name


def fit_dense(
    file: WeightFile,
    model_name: str,
    model: Segmenter | Detector,
    *,
    class_names: Sequence[str] = (),
) -> tuple[Variables, tuple[str, ...]]:
    """Returns the variables of a file for a segmenter or detector, and notes on what differs.

    Of a classifier the backbone is taken. Of a file for the model's task everything is taken,
    running statistics included; the last layers are new if the classes are others. If the file and
    the data set name their classes, these layers are matched by name. The position embedding is
    resized if its grid differs.

    Args:
        file: from `vig_jax.weights.load.read_weight_file`.
        model_name: the backbone, one of `vig_jax.list_models()`.
        model: the segmenter or detector.
        class_names: of the data set, by class; empty if it names none.

    Returns:
        Variables for `model.apply` without those that are new, and notes for the user.

    Raises:
        WeightsError: names or shapes do not fit the model, or values are not finite.
    """
    check_model_name(file, model_name)
    if isinstance(model, Detector):
        tensors, new, notes = fit_detector.tensors_for(file, model, class_names)
        names = names_of(file.state_dict) or mmdet.NAMES
        translate = functools.partial(names.to_variables, tensors, model, new)
        hint = functools.partial(fit_detector.hint, tensors, model_name, model)
    else:
        tensors, new, notes = fit_segmenter.tensors_for(file, model, class_names)
        translate = functools.partial(mmseg.to_variables, tensors, model, new)
        hint = functools.partial(fit_segmenter.hint, tensors, model_name, model)
    try:
        variables = translate()
    except WeightsError as error:
        raise WeightsError(f"{error}{hint()}") from error
    copies = jax.tree.map(lambda x: np.array(x, order="C"), variables)  # no views of the whole file
    return copies, notes


def completed(variables: Variables, model: Segmenter | Detector, *, seed: int) -> Variables:
    """Returns the variables with random ones, drawn from the seed, for those that are left out.

    Leaves are NumPy arrays.
    """
    side = upstream.traced_side(model)
    given = traverse_util.flatten_dict(variables, sep="/")
    missing = [path for path in upstream.variable_shapes(model) if path not in given]

    # Neither the forward pass nor the other draws are part of the compiled program.
    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        fresh = model.init(key, jnp.zeros((1, side, side, model.in_chans)))
        flat = traverse_util.flatten_dict(dict(fresh), sep="/")
        return {path: flat[path] for path in missing}

    new = jax.tree.map(np.asarray, draw(jax.random.key(seed))) if missing else {}
    return traverse_util.unflatten_dict(given | new, sep="/")
