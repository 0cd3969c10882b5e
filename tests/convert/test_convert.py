import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vmae_jax.convert.engine import ConversionError, export_arrays, import_arrays, locate
from vmae_jax.convert.files import load_safetensors, save_safetensors
from vmae_jax.convert.videomae import finetune_table, pretrain_table, pretrain_to_finetune_table
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.models.vit import Classifier
from vmae_jax.variants import StackSpec

TUBELET, CHANNELS = (1, 2, 3), 2
SPEC = StackSpec(8, 12, 2)  # more than ten blocks: "10" sorts before "2"
OPTIONS = StackOptions(layer_scale=0.1, cosine_attention=True)
TABLE = pretrain_table(TUBELET, CHANNELS)


def random_params(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def mae():
    return functional(
        lambda rngs: MaskedAutoencoder(
            SPEC, StackSpec(4, 2, 2), values=12, encoder_options=OPTIONS, rngs=rngs
        )
    )


@pytest.fixture(scope="module")
def classifier():
    return functional(lambda rngs: Classifier(SPEC, OPTIONS, values=12, num_classes=3, rngs=rngs))


@pytest.fixture
def source(mae):
    return export_arrays(random_params(mae.shapes), TABLE)


def test_import_undoes_export(mae, source):
    params, report = import_arrays(source, TABLE, mae.shapes)
    for ours, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(random_params(mae.shapes)), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)
    assert set(report.mapped) == set(source)
    assert not report.ignored and not report.fresh


def test_names_and_layouts_are_the_published_ones(source):
    assert source["encoder.patch_embed.proj.weight"].shape == (8, 2, 1, 2, 3)
    assert source["encoder.blocks.11.attn.qkv.weight"].shape == (24, 8)
    assert source["encoder.blocks.0.mlp.fc1.weight"].shape == (32, 8)
    assert source["encoder.blocks.3.attn.scale"].shape == (2, 1, 1)
    assert source["encoder_to_decoder.weight"].shape == (4, 8)
    assert source["mask_token"].shape == (1, 1, 4)
    assert source["decoder.head.weight"].shape == (12, 4)
    assert "encoder.blocks.0.attn.qkv.bias" not in source


def test_blocks_are_stacked_by_number(mae, source):
    params, _ = import_arrays(dict(reversed(source.items())), TABLE, mae.shapes)
    kernel = params["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    for i in range(12):
        np.testing.assert_array_equal(kernel[i], source[f"encoder.blocks.{i}.mlp.fc1.weight"].T)


def test_the_patch_embedding_is_the_convolution(mae, source):
    params, _ = import_arrays(source, TABLE, mae.shapes)
    cube = np.random.default_rng(1).normal(size=(1, 2, 3, 2))  # frame, row, column, channel
    convolved = np.einsum("dcthw,thwc->d", source["encoder.patch_embed.proj.weight"], cube)
    kernel = params["encoder"]["patch_embed"]["kernel"]
    np.testing.assert_allclose(cube.ravel() @ kernel, convolved, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_prefixes_are_stripped(mae, source, prefix):
    wrapped = {prefix + name: array for name, array in source.items()}
    params, report = import_arrays(wrapped, TABLE, mae.shapes)
    np.testing.assert_array_equal(params["mask_token"], source["mask_token"].ravel())
    assert report.mapped[f"{prefix}mask_token"] == "mask_token"


def test_half_precision_becomes_float32(mae, source):
    halves = {name: array.astype(np.float16) for name, array in source.items()}
    params, _ = import_arrays(halves, TABLE, mae.shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_every_problem_is_named_at_once(mae, source):
    del source["encoder.blocks.4.norm1.weight"], source["decoder.norm.bias"]
    source["encoder.blocks.12.gamma_1"] = np.zeros(8, np.float32)
    source["encoder.cls_token"] = np.zeros(8, np.float32)
    source["module.mask_token"] = source["mask_token"]
    source["decoder.head.weight"] = np.zeros((11, 4), np.float32)
    source["encoder.patch_embed.proj.weight"] = np.zeros((8, 3, 1, 2, 3), np.float32)
    with pytest.raises(ConversionError) as error:
        import_arrays(source, TABLE, mae.shapes)
    for words in (
        "encoder/blocks/norm1/scale has 12 blocks in the model; the source lacks [4]",
        "decoder/norm/bias (4,) is missing",
        "encoder/blocks/gamma_1 has 12 blocks in the model; the source lacks [] and has [12]",
        "encoder.cls_token is unknown",
        "module.mask_token and mask_token are the same array",
        "decoder.head.weight: (4, 11) in our layout where the model has (4, 12)",
        "expected a convolution of 2 channels over (1, 2, 3)",
    ):
        assert words in str(error.value)


def test_parameters_that_the_model_lacks_are_errors(source):
    plain = functional(
        lambda rngs: MaskedAutoencoder(
            SPEC, StackSpec(4, 2, 2), values=12, encoder_options=StackOptions(), rngs=rngs
        )
    )
    with pytest.raises(ConversionError, match="the model has no encoder/blocks/gamma_1"):
        import_arrays(source, TABLE, plain.shapes)


def test_a_pretrained_encoder_goes_into_a_classifier(classifier, source):
    table = pretrain_to_finetune_table(TUBELET, CHANNELS)
    template = random_params(classifier.shapes, seed=5)
    params, report = import_arrays(source, table, template)
    np.testing.assert_array_equal(
        params["encoder"]["blocks"]["attn"]["q_bias"][7], source["encoder.blocks.7.attn.q_bias"]
    )
    np.testing.assert_array_equal(params["head"]["kernel"], template["head"]["kernel"])
    assert report.ignored["encoder.norm.weight"].startswith("mean pooling")
    assert report.ignored["decoder.blocks.1.norm1.bias"] == "the classifier has no decoder"
    assert set(report.fresh) == {"fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel"}
    assert "4 kept at initial values (a pretraining checkpoint has no classifier)" in str(report)


def test_a_pretraining_file_is_no_fine_tuned_one(classifier, source):
    with pytest.raises(ConversionError, match="videomae fine-tuned"):
        import_arrays(source, finetune_table(TUBELET, CHANNELS), classifier.shapes)


def test_files_in_published_names_load(tmp_path, classifier):
    table = finetune_table(TUBELET, CHANNELS)
    params = random_params(classifier.shapes)
    save_safetensors(tmp_path / "a.safetensors", params, table)
    loaded, _ = load_safetensors(tmp_path / "a.safetensors", table, classifier.shapes)
    for ours, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, expected)
    save_file({"head.weight": np.zeros((3, 8), np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(ConversionError, match="is missing from the source"):
        load_safetensors(tmp_path / "b.safetensors", table, classifier.shapes)
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_safetensors(tmp_path / "c.safetensors", table, classifier.shapes)
    (tmp_path / "d.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a \.safetensors"):
        load_safetensors(tmp_path / "d.pth", table, classifier.shapes)


def test_names_are_located_in_our_tree():
    assert locate("mask_token", TABLE) == ("mask_token", None)
    assert locate("module.decoder.blocks.1.mlp.fc2.bias", TABLE) == (
        "decoder/blocks/mlp/fc2/bias",
        1,
    )
    with pytest.raises(ConversionError, match="pos_embed"):
        locate("pos_embed", TABLE)


def test_trees_of_another_kind_are_not_exported(classifier):
    with pytest.raises(ConversionError, match="fc_norm"):
        export_arrays(random_params(classifier.shapes), TABLE)
