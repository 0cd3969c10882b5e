"""MViTv2-S and L at full size against numbers of the released code (reference/maskfeat.md, 11)."""

import zlib

import jax
import numpy as np
import pytest

from vmae_jax.convert.engine import flatten, to_ours, to_theirs, unflatten
from vmae_jax.convert.fit import fit
from vmae_jax.convert.mvit import mvit_table
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mvit import MViTClassifier
from vmae_jax.variants import MVIT_VARIANTS

VALUES = {
    "S": (0.058074, 0.997537, [-0.1703, 1.80896, 0.15427, -2.16438, -0.07614]),
    "L": (-0.032285, 0.983571, [1.37053, -1.06621, 1.17953, -1.15106, -0.86467]),
}


def filled(name, shape):
    """The reference's weights, which follow from the published name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    else:
        z = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return z.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["S", "L"])
def test_logits_are_those_of_the_released_network(size):
    net = functional(
        lambda rngs: MViTClassifier(
            MVIT_VARIANTS[size],
            StackOptions(attention="xla_f32", remat="none"),
            num_classes=400,
            grid=(8, 56, 56),
            tubelet=(2, 4, 4),
            rngs=rngs,
        )
    )
    empty = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten(net.shapes).items()}
    named = to_theirs(unflatten(empty), mvit_table())
    weights = {name: filled(name, array.shape) for name, array in named.items()}
    params = unflatten(fit(*to_ours(weights, mvit_table()), net.shapes).arrays)
    clip = np.random.RandomState(0).standard_normal((1, 3, 16, 224, 224)).astype(np.float32)
    logits = np.asarray(jax.jit(net.apply)(params, np.moveaxis(clip, 1, -1)))[0]
    mean, deviation, first = VALUES[size]
    # The reference says to expect 1e-4 of single values.
    np.testing.assert_allclose(logits[:5], first, atol=1e-4)
    np.testing.assert_allclose(logits.mean(), mean, atol=1e-5)
    np.testing.assert_allclose(logits.std(), deviation, atol=1e-5)
