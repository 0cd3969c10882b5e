"""UMT's classifiers at full size against numbers of the released code (reference/umt.md, D1)."""

import jax
import numpy as np
import pytest
from test_mvit_values import filled

from vmae_jax.convert.engine import flatten, to_ours, to_theirs, unflatten
from vmae_jax.convert.fit import fit
from vmae_jax.convert.umt import finetune_table
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.vit import Classifier, patch_values
from vmae_jax.ops.patches import patchify
from vmae_jax.variants import VIT_VARIANTS

TUBELET, GRID = (1, 16, 16), (8, 14, 14)
# Mean, deviation and first five of the logits.
VALUES = {
    "B": (-0.07948, 0.932, [-0.37445, 0.14379, 0.11555, -1.45107, -0.32377]),
    "L": (0.064978, 0.934478, [2.13408, 0.28466, -0.13643, 0.70295, 0.71965]),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", VALUES)
def test_logits_are_those_of_the_released_classifier(size):
    net = functional(
        lambda rngs: Classifier(
            VIT_VARIANTS[size],
            StackOptions(attention="xla_f32", remat="none"),
            values=patch_values(TUBELET, 3),
            num_classes=400,
            grid=GRID,
            rngs=rngs,
        )
    )
    table = finetune_table(TUBELET)
    empty = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten(net.shapes).items()}
    named = to_theirs(unflatten(empty), table)
    weights = {name: filled(name, array.shape) for name, array in named.items()}
    params = unflatten(fit(*to_ours(weights, table), net.shapes).arrays)
    clip = np.random.RandomState(0).standard_normal((1, 3, 8, 224, 224)).astype(np.float32)
    patches = patchify(np.moveaxis(clip, 1, -1), TUBELET)
    logits = np.asarray(jax.jit(lambda p, x: net.apply(p, x, grid=GRID))(params, patches))[0]
    mean, deviation, first = VALUES[size]
    np.testing.assert_allclose(logits[:5], first, atol=2e-5)
    np.testing.assert_allclose([logits.mean(), logits.std()], [mean, deviation], atol=6e-6)
