"""UMT-B and L at full size against numbers of the released code (reference/umt.md, D1)."""

import jax
import numpy as np
import pytest
from test_mvit_values import filled

from vmae_jax import chips
from vmae_jax import config as config_lib
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import flatten, to_ours, to_theirs, unflatten
from vmae_jax.convert.umt import finetune_table, pretrain_table
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.umt import Student
from vmae_jax.models.vit import Classifier
from vmae_jax.ops.losses import alignment, unit_vectors
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.tokens import gather
from vmae_jax.systems.image_teacher import image_teacher
from vmae_jax.variants import CLIP_VARIANTS, VIT_VARIANTS

GRID = (8, 14, 14)
# Teacher: variant, size, patch, output. Student: mean, deviation, the first five of the first and
# of the last layer, the last three; loss; tensors of its file.
VALUES = {
    "B": (
        *("B/16", 224, 16, 512, 0.000071, 0.044194),
        [0.03196, -0.01954, -0.03929, 0.01835, 0.02523],
        [0.00025, 0.02427, 0.06892, -0.04609, -0.01673],
        [0.0248, 0.10554, 0.03292],
        *(2.010342, 184),
    ),
    "L": (
        *("L/14", 196, 14, 768, 0.000093, 0.036084),
        [0.06672, -0.00007, 0.06386, 0.01035, 0.13253],
        [0.01352, -0.00628, -0.01277, -0.01094, -0.00409],
        [0.01037, 0.06236, -0.02955],
        *(2.021313, 340),
    ),
}
# Of a classifier of 400 classes: mean, deviation and the first five of its logits.
LOGITS = {
    "B": (-0.07948, 0.932, [-0.37445, 0.14379, 0.11555, -1.45107, -0.32377]),
    "L": (0.064978, 0.934478, [2.13408, 0.28466, -0.13643, 0.70295, 0.71965]),
}


def filled_params(shapes, table):
    """Parameters with the reference's weights, and how many tensors a file has of them."""
    empty = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten(shapes).items()}
    named = to_theirs(unflatten(empty), table)
    weights = {name: filled(name, array.shape) for name, array in named.items()}
    return unflatten(to_ours(weights, table)[0]), len(named)


@pytest.mark.slow
@pytest.mark.parametrize("size", VALUES)
def test_the_student_says_what_the_released_one_says_and_is_as_far_from_its_teacher(size):
    variant, side, patch, output, mean, deviation, first, last, end, loss, tensors = VALUES[size]
    config = config_lib.umt_defaults()
    config.model.dtype = "float32"
    config.teacher.encoder.update(
        config_lib.stack(CLIP_VARIANTS[variant]), attention="xla_f32", remat="none"
    )
    config.teacher.update(size=(side, side), tubelet=(1, patch, patch), output=output)
    teacher, spec = image_teacher(config, chips.local()), VIT_VARIANTS[size]
    layers = tuple(range(spec.depth - 5, spec.depth + 1))
    net = functional(
        lambda rngs: Student(
            spec,
            StackOptions(attention="xla_f32", remat="none"),
            values=768,
            layers=layers,
            output=output,
            rngs=rngs,
        )
    )
    params, found = filled_params(net.shapes, pretrain_table((1, 16, 16)))
    assert found == tensors
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    frozen, _ = filled_params(shapes, clip_table((1, patch, patch)))

    clip = np.random.RandomState(0).standard_normal((1, 3, 8, 224, 224)).astype(np.float32)
    video, draw = np.moveaxis(clip, 1, -1), np.random.RandomState(2)
    kept = [196 * t + np.sort(draw.permutation(196)[:40]) for t in range(8)]
    visible_idx = np.concatenate(kept)[None].astype(np.int32)
    visible = gather(patchify(video, (1, 16, 16)), visible_idx)
    said = unit_vectors(jax.jit(lambda *a: net.apply(*a, grid=GRID))(params, visible, visible_idx))
    assert said.shape == (6, 1, 320, output)
    np.testing.assert_allclose([said.mean(), said.std()], [mean, deviation], atol=1e-6)
    np.testing.assert_allclose(said[0, 0, 0, :5], first, atol=1e-5)
    np.testing.assert_allclose(said[5, 0, 0, :5], last, atol=1e-5)
    np.testing.assert_allclose(said[5, 0, -1, -3:], end, atol=1e-5)

    features, _ = jax.jit(teacher.look)(frozen, video)
    target = jax.vmap(gather, in_axes=(0, None))(features, visible_idx)
    total, weight = alignment(said, target, kind="l2")
    np.testing.assert_allclose(total / weight, loss, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", LOGITS)
def test_logits_are_those_of_the_released_classifier(size):
    net = functional(
        lambda rngs: Classifier(
            VIT_VARIANTS[size],
            StackOptions(attention="xla_f32", remat="none"),
            values=768,
            num_classes=400,
            rngs=rngs,
        )
    )
    params, found = filled_params(net.shapes, finetune_table((1, 16, 16)))
    assert found == {"B": 162, "L": 318}[size]
    clip = np.random.RandomState(0).standard_normal((1, 3, 8, 224, 224)).astype(np.float32)
    patches = patchify(np.moveaxis(clip, 1, -1), (1, 16, 16))
    logits = np.asarray(jax.jit(lambda *a: net.apply(*a, grid=GRID))(params, patches))[0]
    mean, deviation, first = LOGITS[size]
    np.testing.assert_allclose(logits[:5], first, atol=2e-5)
    np.testing.assert_allclose([logits.mean(), logits.std()], [mean, deviation], atol=6e-6)
