"""The maps of a backbone that are explained."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vig_jax.models import ViG
from vig_jax.models.backbone import Backbone


def apply_maps(
    model: Backbone,
    variables: Mapping[str, Any],
    images: jax.Array,
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> Any:
    """Returns the result of `model.features`, of plain models without the norm of the last map.

    Then all maps are of the residual stream. Backbones of segmenters lack the norm.
    """
    if isinstance(model, ViG):
        options["norm_last"] = False
    return model.apply(variables, images, method="features", out_indices=out_indices, **options)
