import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.ops.masking import pretraining_masks
from vmae_jax.ops.tokens import gather
from vmae_jax.variants import StackSpec

GRID = (2, 4, 4)
VALUES = 6
ENCODER, DECODER = StackSpec(16, 3, 2), StackSpec(8, 2, 2, 48 / 11)


@functools.cache
def network(**options):
    options = StackOptions(**options)
    return functional(
        lambda rngs: MaskedAutoencoder(
            ENCODER, DECODER, values=VALUES, encoder_options=options, rngs=rngs
        )
    )


@functools.cache
def params():
    """Every parameter away from its initial value, so that all of them matter."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.2, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, network().shapes)


@functools.cache
def batch(count=2):
    keys = jax.random.split(jax.random.key(2), count)
    masks = pretraining_masks(
        keys, grid=GRID, encoder=("tube", 0.75), decoder=("running_cell", 0.5)
    )
    patches = jax.random.normal(jax.random.key(3), (count, 32, VALUES))
    return gather(patches, masks.visible_idx), masks.visible_idx, masks.target_idx


def loss_and_grads(net, params, inputs, **kwargs):
    def loss(params):
        pred = net.apply(params, *inputs, grid=GRID, **kwargs)
        return jnp.square(pred.astype(jnp.float32)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def predict(net, params, *inputs, method="__call__", **kwargs):
    """Compiled once as a whole: faster than operation by operation."""
    call = functools.partial(net.apply, method=method, grid=GRID)
    return jax.jit(lambda p, x, kw: call(p, *x, **kw))(params, inputs, kwargs)


def assert_close(a, b, *, limit=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.abs(x - y).max() <= limit * max(np.abs(y).max(), 1e-3)


def test_parameters_are_named_and_shaped_as_promised():
    paths = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(network().shapes)[0]
    }
    block = {
        "norm1/scale": (16,),
        "norm1/bias": (16,),
        "attn/qkv/kernel": (16, 48),
        "attn/q_bias": (16,),
        "attn/v_bias": (16,),
        "attn/proj/kernel": (16, 16),
        "attn/proj/bias": (16,),
        "norm2/scale": (16,),
        "norm2/bias": (16,),
        "mlp/fc1/kernel": (16, 64),
        "mlp/fc1/bias": (64,),
        "mlp/fc2/kernel": (64, 16),
        "mlp/fc2/bias": (16,),
    }
    expected = {f"encoder/blocks/{name}": (3, *shape) for name, shape in block.items()} | {
        "encoder/patch_embed/kernel": (6, 16),
        "encoder/patch_embed/bias": (16,),
        "encoder/norm/scale": (16,),
        "encoder/norm/bias": (16,),
        "encoder_to_decoder/kernel": (16, 8),
        "mask_token": (8,),
        "decoder/norm/scale": (8,),
        "decoder/norm/bias": (8,),
        "decoder/head/kernel": (8, 6),
        "decoder/head/bias": (6,),
    }
    assert expected.items() <= paths.items()
    rest = {name for name in paths if name not in expected}
    assert rest == {f"decoder/blocks/{name}" for name in block}
    assert paths["decoder/blocks/mlp/fc1/kernel"] == (2, 8, int(8 * 48 / 11))


def test_initial_values_follow_the_released_code():
    wide = functional(
        lambda rngs: MaskedAutoencoder(
            StackSpec(128, 2, 4),
            StackSpec(64, 1, 2),
            values=96,
            encoder_options=StackOptions(layer_scale=0.1, cosine_attention=True),
            rngs=rngs,
        )
    )
    init = jax.jit(wide.init)(jax.random.key(0))
    encoder, decoder = init["encoder"], init["decoder"]

    def uniform(array, bound):
        assert np.abs(array).max() <= bound
        np.testing.assert_allclose(np.std(array), bound / np.sqrt(3), rtol=0.1)

    uniform(
        encoder["blocks"]["attn"]["qkv"]["kernel"], np.sqrt(6 / (128 + 384))
    )  # the fused matrix
    uniform(encoder["blocks"]["mlp"]["fc1"]["kernel"], np.sqrt(6 / (128 + 512)))
    uniform(decoder["head"]["kernel"], np.sqrt(6 / (64 + 96)))
    uniform(encoder["patch_embed"]["kernel"], 1 / np.sqrt(96))
    uniform(encoder["patch_embed"]["bias"], 1 / np.sqrt(96))
    uniform(init["encoder_to_decoder"]["kernel"], 1 / np.sqrt(128))
    assert np.abs(init["mask_token"]).max() <= 0.02
    assert np.std(init["mask_token"]) > 0.008  # 0.0108 for a normal cut at one deviation
    for name in ("q_bias", "v_bias"):
        np.testing.assert_array_equal(encoder["blocks"]["attn"][name], 0)
    np.testing.assert_array_equal(decoder["head"]["bias"], 0)
    np.testing.assert_array_equal(encoder["norm"]["scale"], 1)
    np.testing.assert_allclose(encoder["blocks"]["gamma_1"], 0.1)
    np.testing.assert_allclose(encoder["blocks"]["attn"]["scale"], np.log(10), rtol=1e-6)
    first, second = encoder["blocks"]["mlp"]["fc1"]["kernel"]
    assert (first != second).any()  # blocks do not share their draw


@pytest.mark.parametrize(
    "options",
    [
        {"remat": "none"},
        {"remat": "full"},
        {"scan": False, "remat": "named"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_running_the_stack_differently_changes_nothing(options):
    expected = loss_and_grads(network(), params(), batch())
    assert_close(loss_and_grads(network(**options), params(), batch()), expected)


def test_named_remat_saves_less_than_none_and_more_than_full():
    def saved(remat):
        net = network(remat=remat, scan=False)
        _, vjp = jax.eval_shape(
            lambda p: jax.vjp(lambda p: net.apply(p, *batch(), grid=GRID), p), params()
        )
        return sum(leaf.size for leaf in jax.tree.leaves(vjp))

    assert saved("full") < saved("named") < saved("none")


def test_a_prediction_depends_on_visible_tokens_only():
    _, visible_idx, target_idx = batch()
    video, weights = jax.random.normal(jax.random.key(4), (2, 32, VALUES)), params()

    def total(video):
        visible = gather(video, visible_idx)
        pred = predict(network(), weights, visible, visible_idx, target_idx)
        return jnp.sum(jnp.sin(pred))

    grad = np.asarray(jax.jit(jax.grad(total))(video))
    touched = np.abs(grad).max(axis=2) > 0
    for b in range(2):
        np.testing.assert_array_equal(np.flatnonzero(touched[b]), visible_idx[b])


def test_the_order_in_which_tokens_are_given_does_not_matter():
    patches, visible_idx, target_idx = batch()
    expected = predict(network(), params(), patches, visible_idx, target_idx)
    order = jax.random.permutation(jax.random.key(5), visible_idx.shape[1])
    pred = predict(
        network(), params(), patches[:, order], visible_idx[:, order], target_idx[:, ::-1]
    )
    assert_close(pred[:, ::-1], expected)


def test_clips_do_not_influence_each_other():
    whole = predict(network(), params(), *batch(4))
    part = predict(network(), params(), *(x[2:3] for x in batch(4)))
    assert_close(part, whole[2:3])


def test_encode_and_decode_make_up_the_model():
    net, (patches, visible_idx, target_idx) = network(), batch()
    latent = predict(net, params(), patches, visible_idx, method="encode")
    assert latent.shape == (2, 8, 16)
    pred = predict(net, params(), latent, visible_idx, target_idx, method="decode")
    assert_close(pred, predict(net, params(), *batch()))


def test_bfloat16_stays_near_float32():
    exact = predict(network(), params(), *batch())
    net = network(dtype="bfloat16")
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params())
    for weights in (params(), half):
        pred = predict(net, weights, *batch())
        assert pred.dtype == jnp.bfloat16
        assert_close(pred, exact, limit=0.1)


def test_drop_path_depends_on_the_clips_key_alone():
    net = network(drop_path=0.5)
    keys = jax.random.split(jax.random.key(6), 4)
    whole = predict(net, params(), *batch(4), keys=keys)
    again = predict(net, params(), *(x[1:3] for x in batch(4)), keys=keys[1:3])
    assert_close(again, whole[1:3])
    evaluated = predict(net, params(), *batch(4))
    assert_close(evaluated, predict(network(), params(), *batch(4)))
    assert np.abs(whole - evaluated).max() > 1e-2
    unrolled = network(drop_path=0.5, scan=False)
    assert_close(predict(unrolled, params(), *batch(4), keys=keys), whole)


def test_sharded_parameters_give_the_same_loss_and_gradients():
    expected = loss_and_grads(network(), params(), batch(8))
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        data = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

        def sharding(leaf):
            free = [i for i in range(leaf.ndim) if leaf.shape[i] % 4 == 0]
            spec = ["fsdp" if free and i == free[-1] else None for i in range(leaf.ndim)]
            return NamedSharding(mesh, PartitionSpec(*spec))

        weights = jax.tree.map(lambda p: jax.device_put(p, sharding(p)), params())
        inputs = jax.tree.map(lambda x: jax.device_put(x, data), batch(8))
        ours = loss_and_grads(network(), weights, inputs)
    assert_close(ours, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gelu": "fast"}, "exact, tanh, quick"),
        ({"remat": "some"}, "none, named, full"),
        ({"attention": "auto"}, "choose_attention"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"cosine_attention": True, "qk_scale": 1.0}, "learns its scale"),
    ],
)
def test_bad_options_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(StackOptions(), **change)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="at least one block"):
        functional(
            lambda rngs: MaskedAutoencoder(
                StackSpec(8, 0, 2), DECODER, values=4, encoder_options=StackOptions(), rngs=rngs
            )
        )
    patches, visible_idx, target_idx = batch()
    with pytest.raises(ValueError, match=r"\[B, K, 6\]"):
        predict(network(), params(), patches[..., :5], visible_idx, target_idx)
