import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mvit import MViT, block_shapes, groups_of
from vmae_jax.variants import MVIT_VARIANTS, MViTSpec

GRID_224 = (8, 56, 56)  # 16 frames of 224 pixels
TINY = MViTSpec(8, (1, 2), 1, strides=((1, 1, 1), (1, 2, 2)), kv_stride=(1, 2, 2))


def columns(shape):
    """Of a table of the reference: widths, heads, stride, side, kv stride, kv side, rows."""
    return (
        shape.width,
        shape.width_out,
        shape.heads,
        shape.stride[1],
        shape.grid_out[1],
        shape.kv_stride[1],
        shape.kv_grid[1],
        shape.rows[1],
    )


# reference/maskfeat.md 1.6, fine-tuning: a row for each run of equal blocks.
SIZES = {
    "S": [
        (1, (96, 192, 1, 1, 56, 8, 7, 111)),
        (1, (192, 192, 2, 2, 28, 4, 14, 55)),
        (1, (192, 384, 2, 1, 28, 4, 7, 55)),
        (1, (384, 384, 4, 2, 14, 2, 14, 27)),
        (9, (384, 384, 4, 1, 14, 2, 7, 27)),
        (1, (384, 768, 4, 1, 14, 2, 7, 27)),
        (1, (768, 768, 8, 2, 7, 1, 14, 27)),
        (1, (768, 768, 8, 1, 7, 1, 7, 13)),
    ],
    "L": [
        (1, (144, 144, 2, 1, 56, 8, 7, 111)),
        (1, (144, 288, 2, 1, 56, 8, 7, 111)),
        (1, (288, 288, 4, 2, 28, 4, 14, 55)),
        (4, (288, 288, 4, 1, 28, 4, 7, 55)),
        (1, (288, 576, 4, 1, 28, 4, 7, 55)),
        (1, (576, 576, 8, 2, 14, 2, 14, 27)),
        (34, (576, 576, 8, 1, 14, 2, 7, 27)),
        (1, (576, 1152, 8, 1, 14, 2, 7, 27)),
        (1, (1152, 1152, 16, 2, 7, 1, 14, 27)),
        (3, (1152, 1152, 16, 1, 7, 1, 7, 13)),
    ],
}


@pytest.mark.parametrize("size", ["S", "L"])
def test_blocks_have_the_sizes_of_the_reference(size):
    shapes = block_shapes(MVIT_VARIANTS[size], GRID_224)
    found = [(len(list(g)), columns(s)) for s, g in itertools.groupby(shapes)]
    assert found == SIZES[size]
    assert {shape.rows[0] for shape in shapes} == {15}
    assert [count for _, count in groups_of(shapes)] == [count for count, _ in SIZES[size]]


def test_tables_are_sized_by_rounding_down_where_grids_are_rounded_up():
    # reference/maskfeat.md 1.7: 40 frames of 312 pixels.
    shapes = block_shapes(MVIT_VARIANTS["L"], (20, 78, 78))
    assert [shapes[i].grid_out[1] for i in (0, 2, 8, 44)] == [78, 39, 20, 10]
    assert [shapes[i].rows for i in (1, 7, 43, 47)] == [
        (39, 155, 155),
        (39, 77, 77),
        (39, 37, 37),
        (39, 17, 17),
    ]


# reference/maskfeat.md 0: whole classifiers of 400 classes; 1.7 for the larger grid.
@pytest.mark.parametrize(
    ("size", "grid", "expected"),
    [
        ("S", GRID_224, 36_475_120),
        ("L", GRID_224, 217_578_064),
        ("L", (20, 78, 78), 217_747_696),
    ],
)
def test_trunk_has_the_published_number_of_parameters(size, grid, expected):
    network = functional(
        lambda rngs: MViT(
            MVIT_VARIANTS[size],
            StackOptions(),
            grid=grid,
            tubelet=(2, 4, 4),
            final_norm=True,
            rngs=rngs,
        )
    )
    width = {"S": 768, "L": 1152}[size]
    assert network.num_params + 400 * (width + 1) == expected


def tiny(**changes):
    options = {"grid": (2, 4, 4), "tubelet": (2, 4, 4), **changes}
    return functional(lambda rngs: MViT(TINY, StackOptions(), rngs=rngs, **options))


def clips(batch=2):
    return jax.random.normal(jax.random.key(1), (batch, 4, 16, 16, 3))


def test_hidden_tokens_tell_nothing_of_their_pixels():
    net, video = tiny(), clips()
    params = jax.tree.map(lambda s: np.full(s.shape, 0.02, np.float32), net.shapes)
    hidden = jnp.ones((2, 32), bool)

    @jax.jit
    def encoded(video):
        return net.apply(params, video, hidden=hidden, mask_token=jnp.ones(8), layer=1)

    np.testing.assert_array_equal(encoded(video), encoded(-video))


def test_every_layer_has_the_grid_and_width_that_it_tells():
    net = tiny()
    module = net.module(net.shapes)
    for layer in (1, 2, 3):
        encode = functools.partial(net.apply, layer=layer)
        tokens = jax.eval_shape(encode, net.shapes, clips(1))
        assert tokens.shape == (1, 1 + np.prod(module.grid(layer)), module.width(layer))


def test_a_layer_that_does_not_exist_is_refused():
    net = tiny()
    with pytest.raises(ValueError, match="layer 4 of 3 blocks"):
        jax.eval_shape(functools.partial(net.apply, layer=4), net.shapes, clips())
