"""CLIP's B/16 and L/14 at full size against numbers of the released code (reference/umt.md, D1)."""

import jax
import numpy as np
import pytest
from test_mvit_values import filled

from vmae_jax import chips
from vmae_jax import config as config_lib
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import flatten, to_ours, to_theirs, unflatten
from vmae_jax.systems.image_teacher import image_teacher
from vmae_jax.variants import CLIP_VARIANTS

# Size of a frame, patch, output; features: mean, deviation, the first five; attention: the first
# five, sums of the first three frames.
VALUES = {
    "B/16": (
        *(224, 16, 512, 0.001414, 0.044172, [0.0072, -0.02207, 0.01619, 0.06061, -0.03039]),
        *([0.00441, 0.00552, 0.00517, 0.00447, 0.00625], [0.99620, 0.99619, 0.99610]),
    ),
    "L/14": (
        *(196, 14, 768, -0.000176, 0.036084, [-0.00073, 0.00003, -0.02297, -0.0337, 0.03193]),
        *([0.00606, 0.00355, 0.00548, 0.00506, 0.00465], [0.99541, 0.99528, 0.99506]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VALUES)
def test_the_teacher_says_what_the_released_one_says(variant):
    size, patch, output, mean, deviation, first, looked, sums = VALUES[variant]
    config = config_lib.umt_defaults()
    config.teacher.encoder.update(
        config_lib.stack(CLIP_VARIANTS[variant]), attention="xla_f32", remat="none"
    )
    config.teacher.update(size=(size, size), tubelet=(1, patch, patch), output=output)
    config.model.dtype = "float32"
    teacher, table = image_teacher(config, chips.local()), clip_table((1, patch, patch))
    shapes = flatten(jax.eval_shape(teacher.init, jax.random.key(0)))
    empty = {path: np.empty(leaf.shape, np.float32) for path, leaf in shapes.items()}
    named = to_theirs(unflatten(empty), table)
    assert len(named) == {"B/16": 152, "L/14": 296}[variant]
    frozen, _ = to_ours({name: filled(name, array.shape) for name, array in named.items()}, table)
    clip = np.random.RandomState(0).standard_normal((1, 3, 8, 224, 224)).astype(np.float32)
    video = np.moveaxis(clip, 1, -1)
    features, attention = jax.jit(teacher.look)(unflatten(frozen), video)
    np.testing.assert_allclose([features.mean(), features.std()], [mean, deviation], atol=1e-6)
    np.testing.assert_allclose(features[0, 0, 0, :5], first, atol=1e-5)
    np.testing.assert_allclose(attention[0, :5], looked, atol=1e-5)
    # The first sum of B/16 is 0.9961896 here and in PyTorch, in float32 and float64.
    np.testing.assert_allclose(attention[:3].sum(axis=1), sums, atol=1.1e-5)
