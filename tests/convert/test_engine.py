import jax
import numpy as np
import pytest

from vmae_jax.convert.engine import (
    ConversionError,
    flatten,
    locate,
    to_ours,
    to_theirs,
    unflatten,
)
from vmae_jax.convert.families import recognise
from vmae_jax.convert.fit import CLASSIFIER, EXACT, PRETRAINING, fit, starting_policy
from vmae_jax.convert.videomae import (
    finetune_table,
    pretrain_table,
    transformers_table,
)
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.models.vit import Classifier
from vmae_jax.ops.pos_embed import resize_positions
from vmae_jax.variants import StackSpec

TUBELET, CHANNELS = (1, 2, 3), 2
SPEC = StackSpec(8, 12, 2)  # more than ten blocks: "10" sorts before "2"
OPTIONS = StackOptions(layer_scale=0.1, cosine_attention=True)
TABLE = pretrain_table(TUBELET, CHANNELS)


def random_params(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def pretrainer(options=OPTIONS):
    return functional(
        lambda rngs: MaskedAutoencoder(
            SPEC, StackSpec(4, 2, 2), values=12, encoder_options=options, rngs=rngs
        )
    )


def classifier(options=OPTIONS, **changes):
    return functional(
        lambda rngs: Classifier(
            SPEC, options, values=12, rngs=rngs, **{"num_classes": 3, **changes}
        )
    )


def assert_equal(ours, expected):
    ours, expected = flatten(ours), flatten(expected)
    assert set(ours) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


@pytest.fixture(scope="module")
def mae():
    return pretrainer()


@pytest.fixture
def source(mae):
    return to_theirs(random_params(mae.shapes), TABLE)


@pytest.mark.parametrize(
    ("net", "make_table"),
    [
        pytest.param(pretrainer(), pretrain_table, id="released-pretraining"),
        pytest.param(classifier(), finetune_table, id="released-classifier"),
        pytest.param(pretrainer(StackOptions()), transformers_table, id="transformers-pretraining"),
        pytest.param(classifier(StackOptions()), transformers_table, id="transformers-classifier"),
        pytest.param(
            classifier(StackOptions(), pooling="first"), transformers_table, id="transformers-first"
        ),
    ],
)
def test_import_undoes_export_bit_for_bit(net, make_table):
    params = random_params(net.shapes)
    theirs = to_theirs(params, make_table(TUBELET, CHANNELS))
    family = recognise(theirs)
    assert (family.tubelet, family.channels) == (TUBELET, CHANNELS)
    arrays, report = to_ours(theirs, family.table)
    assert_equal(unflatten(arrays), params)
    assert set(report.mapped) == set(theirs) and not report.ignored
    fitted = fit(arrays, report, net.shapes)
    assert not fitted.report.fresh and not fitted.report.ignored


def test_names_and_layouts_are_the_published_ones(source):
    assert source["encoder.patch_embed.proj.weight"].shape == (8, 2, 1, 2, 3)
    assert source["encoder.blocks.11.attn.qkv.weight"].shape == (24, 8)
    assert source["encoder.blocks.0.mlp.fc1.weight"].shape == (32, 8)
    assert source["encoder.blocks.3.attn.scale"].shape == (2, 1, 1)
    assert source["encoder_to_decoder.weight"].shape == (4, 8)
    assert source["mask_token"].shape == (1, 1, 4)
    assert source["decoder.head.weight"].shape == (12, 4)
    assert "encoder.blocks.0.attn.qkv.bias" not in source


def test_transformers_names_are_the_ports():
    theirs = to_theirs(
        random_params(pretrainer(StackOptions()).shapes), transformers_table(TUBELET, CHANNELS)
    )
    block = "videomae.encoder.layer.11.attention.attention"
    assert theirs[f"{block}.query.weight"].shape == theirs[f"{block}.key.weight"].shape == (8, 8)
    assert theirs[f"{block}.q_bias"].shape == (8,)
    assert theirs["decoder.decoder_layers.1.output.dense.weight"].shape == (4, 16)
    assert theirs["videomae.layernorm.weight"].shape == (8,)


def test_blocks_are_stacked_by_number(source):
    arrays, _ = to_ours(dict(reversed(source.items())), TABLE)
    kernel = arrays["encoder/blocks/mlp/fc1/kernel"]
    for i in range(12):
        np.testing.assert_array_equal(kernel[i], source[f"encoder.blocks.{i}.mlp.fc1.weight"].T)


def test_the_patch_embedding_is_the_convolution(source):
    arrays, _ = to_ours(source, TABLE)
    cube = np.random.default_rng(1).normal(size=(1, 2, 3, 2))  # frame, row, column, channel
    convolved = np.einsum("dcthw,thwc->d", source["encoder.patch_embed.proj.weight"], cube)
    kernel = arrays["encoder/patch_embed/kernel"]
    np.testing.assert_allclose(cube.ravel() @ kernel, convolved, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_prefixes_are_stripped(source, prefix):
    wrapped = {prefix + name: array for name, array in source.items()}
    arrays, report = to_ours(wrapped, recognise(wrapped).table)
    np.testing.assert_array_equal(arrays["mask_token"], source["mask_token"].ravel())
    assert report.mapped[f"{prefix}mask_token"] == ("mask_token",)


def test_half_precision_becomes_float32(source):
    halves = {name: array.astype(np.float16) for name, array in source.items()}
    arrays, _ = to_ours(halves, TABLE)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_projections_come_fused_or_apart(source):
    expected, _ = to_ours(source, TABLE)
    apart = dict(source)
    for block in range(12):
        name = f"encoder.blocks.{block}.attn"
        parts = np.split(apart.pop(f"{name}.qkv.weight"), 3)
        for letter, part in zip("vkq", reversed(parts), strict=True):
            apart[f"{name}.{letter}_proj.weight"] = part
        for letter in "qv":
            apart[f"{name}.{letter}_proj.bias"] = apart.pop(f"{name}.{letter}_bias")
        apart[f"{name}.k_proj.bias"] = np.zeros(8, np.float32)
    arrays, report = to_ours(apart, TABLE)
    assert_equal(arrays, expected)
    assert report.mapped["encoder.blocks.3.attn.k_proj.weight"] == (
        "encoder/blocks/attn/qkv/kernel[3]",
    )
    del apart["encoder.blocks.5.attn.k_proj.weight"]
    with pytest.raises(ConversionError, match=r"came without encoder.blocks.5.attn.k_proj.weight"):
        to_ours(apart, TABLE)


def test_a_fused_bias_is_taken_apart_and_may_have_none_for_keys(source):
    expected, _ = to_ours(source, TABLE)
    for block in range(12):
        name = f"encoder.blocks.{block}.attn"
        q, v = source.pop(f"{name}.q_bias"), source.pop(f"{name}.v_bias")
        source[f"{name}.qkv.bias"] = np.concatenate([q, np.zeros_like(q), v])
    arrays, _ = to_ours(source, TABLE)
    assert_equal(arrays, expected)
    source["encoder.blocks.7.attn.qkv.bias"][9] = 0.1
    with pytest.raises(ConversionError, match=r"blocks.7.attn.qkv.bias.*bias of the keys"):
        to_ours(source, TABLE)


def test_every_problem_is_named_at_once(source):
    del source["encoder.blocks.4.norm1.weight"]
    source["encoder.cls_token"] = np.zeros(8, np.float32)
    source["module.mask_token"] = source["mask_token"]
    source["encoder.blocks.3.attn.q_proj.bias"] = np.zeros(8, np.float32)
    source["encoder.blocks.2.gamma_1"] = np.zeros(9, np.float32)
    source["encoder.patch_embed.proj.weight"] = np.zeros((8, 3, 1, 2, 3), np.float32)
    with pytest.raises(ConversionError) as error:
        to_ours(source, TABLE)
    for words in (
        "encoder/blocks/norm1/scale: blocks [4] of 12 are missing",
        "encoder.cls_token is unknown",
        "module.mask_token and mask_token are the same array",
        "encoder.blocks.3.attn.q_proj.bias and encoder.blocks.3.attn.q_bias are the same array",
        "encoder.blocks.2.gamma_1: of another shape than block 0, (8,)",
        "expected a convolution of 2 channels over (1, 2, 3)",
    ):
        assert words in str(error.value)


def test_a_model_that_does_not_fit_is_refused(source):
    arrays, report = to_ours(source, TABLE)
    del arrays["decoder/norm/bias"]
    arrays["decoder/head/kernel"] = np.zeros((4, 11), np.float32)
    with pytest.raises(ConversionError) as error:
        fit(arrays, report, pretrainer(StackOptions()).shapes, policy=PRETRAINING)
    for words in (
        "encoder/blocks/gamma_1 (12, 8) has no place in the model",
        "decoder/norm/bias (4,) is missing from the source",
        "decoder/head/kernel: (4, 11) in the source, (4, 12) in the model",
    ):
        assert words in str(error.value)


def test_files_of_other_families_are_refused(source):
    with pytest.raises(ConversionError, match="patch embedding of a known family"):
        recognise({"blocks.0.norm1.weight": np.zeros(8)})
    with pytest.raises(ConversionError, match="over frames, rows and columns"):
        recognise({"patch_embed.proj.weight": np.zeros((8, 3, 16, 16))})
    with pytest.raises(ConversionError, match="videomae fine-tuned"):
        to_ours(source, finetune_table(TUBELET, CHANNELS))


def test_a_pretrained_encoder_goes_into_a_classifier_with_mean_pooling(source):
    net = classifier()
    assert starting_policy(net.shapes) is CLASSIFIER
    fitted = fit(*to_ours(source, TABLE), net.shapes, policy=CLASSIFIER)
    np.testing.assert_array_equal(
        fitted.arrays["encoder/blocks/attn/q_bias"][7], source["encoder.blocks.7.attn.q_bias"]
    )
    assert fitted.report.ignored["encoder.norm.weight"].startswith("mean pooling")
    assert fitted.report.ignored["decoder.blocks.1.norm1.bias"] == "the classifier has no decoder"
    fresh = {"fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel"}
    assert set(fitted.report.fresh) == fresh
    assert set(fitted.arrays) == set(flatten(net.shapes)) - fresh
    assert "4 kept at initial values (the source has none)" in str(fitted.report)
    assert "encoder.norm.bias ignored: mean pooling" in fitted.report.details()


def test_a_pretrained_norm_is_kept_where_the_first_token_is_pooled(source):
    net = classifier(pooling="first")
    fitted = fit(*to_ours(source, TABLE), net.shapes, policy=CLASSIFIER)
    np.testing.assert_array_equal(fitted.arrays["encoder/norm/bias"], source["encoder.norm.bias"])
    assert set(fitted.report.fresh) == {"head/bias", "head/kernel"}


def test_a_head_of_other_classes_begins_anew_and_is_said(source):
    arrays = flatten(random_params(classifier(num_classes=5).shapes))
    report = to_ours({}, TABLE)[1]
    assert not fit(arrays, report, classifier(num_classes=5).shapes, policy=CLASSIFIER).report.fresh
    fitted = fit(arrays, report, classifier().shapes, policy=CLASSIFIER)
    reason = "the number of classes differs (5 in the source, 3 in the model)"
    assert fitted.report.fresh == {"head/bias": reason, "head/kernel": reason}
    np.testing.assert_array_equal(fitted.arrays["fc_norm/scale"], arrays["fc_norm/scale"])
    with pytest.raises(ConversionError, match="head/bias"):  # not where weights are to be used
        fit(arrays, report, classifier().shapes, policy=EXACT)


def test_half_a_pretraining_network_is_no_start(source):
    assert starting_policy(pretrainer().shapes) is PRETRAINING
    arrays = flatten(random_params(classifier(pooling="first").shapes))
    with pytest.raises(ConversionError, match=r"decoder/blocks.* is missing from the source"):
        fit(arrays, to_ours({}, TABLE)[1], pretrainer().shapes, policy=PRETRAINING)


def test_learned_positions_of_another_grid_are_interpolated():
    table = np.random.default_rng(0).normal(size=(2 * 3 * 3, 8)).astype(np.float32)
    arrays = flatten(random_params(classifier(positions="frozen", grid=(2, 3, 3)).shapes))
    arrays["encoder/pos_embed"] = table
    report = to_ours({}, TABLE)[1]
    shapes = classifier(positions="frozen", grid=(2, 4, 4)).shapes
    fitted = fit(arrays, report, shapes, grid=(2, 4, 4))  # as many slots, square: as released
    np.testing.assert_array_equal(
        fitted.arrays["encoder/pos_embed"], resize_positions(table, (2, 3, 3), (2, 4, 4))
    )
    assert "interpolated from a grid (2, 3, 3) to (2, 4, 4)" in str(fitted.report)
    fitted = fit(arrays, report, shapes, grid=(2, 4, 4), source_grid=(1, 6, 3))
    np.testing.assert_array_equal(
        fitted.arrays["encoder/pos_embed"], resize_positions(table, (1, 6, 3), (2, 4, 4))
    )
    with pytest.raises(ConversionError, match="18 positions are not 4 slots of a square"):
        fit(arrays, report, classifier(positions="frozen", grid=(4, 2, 2)).shapes, grid=(4, 2, 2))


def test_names_are_located_in_our_tree():
    assert locate("mask_token", TABLE) == ("mask_token", None)
    assert locate("module.decoder.blocks.1.mlp.fc2.bias", TABLE) == (
        "decoder/blocks/mlp/fc2/bias",
        1,
    )
    with pytest.raises(ConversionError, match="pos_embed"):
        locate("pos_embed", TABLE)


def test_trees_of_another_kind_are_not_exported():
    with pytest.raises(ConversionError, match="fc_norm"):
        to_theirs(random_params(classifier().shapes), TABLE)


def test_arrays_lie_as_safetensors_writes_them(source):
    arrays, _ = to_ours(source, TABLE)
    assert [path for path, array in arrays.items() if not array.flags.c_contiguous] == []
