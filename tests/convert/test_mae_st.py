"""MAE-ST's names: the repository's, PySlowFast's and those of the published weights."""

import jax
import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert.architecture import config_of
from vmae_jax.convert.engine import Report, flatten, to_ours, to_theirs, unflatten
from vmae_jax.convert.export import save_released
from vmae_jax.convert.families import recognise, released_table
from vmae_jax.convert.fit import fit, starting_policy
from vmae_jax.convert.sources import Source, read
from vmae_jax.ops.pos_embed import resize_positions

TUBELET = (2, 4, 4)


def shrunk(config):
    """A tiny network of the system, for clips of 8 x 16 x 16."""
    config = config.unlock()
    for name, width in (("encoder", 12), ("decoder", 8)):
        if name in config.model:
            config.model[name].update(width=width, depth=2, heads=2)
    config.model.tubelet = TUBELET
    config.model.dtype = "float32"
    config.data.update(frames=8, size=(16, 16))
    if config.system == "classify":
        config.model.num_classes = 5
    return config.lock()


def slowfast():
    return shrunk(config_lib.mae_st_defaults())


def repository():
    config = shrunk(config_lib.mae_st_defaults()).unlock()
    config.model.update(init="mae_st", decoder_positions="separable", decoder_class_token="own")
    config.masking.target_frames = "linspace"
    return config.lock()


def finetuned():
    return shrunk(config_lib.mae_st_finetune_defaults())


def shapes_of(config):
    return jax.eval_shape(systems.build(config).init, jax.random.key(0))


def weights_of(config, seed=0):
    """Random arrays by our paths."""
    rng = np.random.default_rng(seed)
    shapes = flatten(shapes_of(config))
    return {path: rng.normal(size=s.shape).astype(np.float32) for path, s in shapes.items()}


def released(arrays):
    return to_theirs(unflatten(arrays), released_table(arrays, TUBELET, 3))


def assert_equal(ours, expected):
    assert set(ours) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


@pytest.mark.parametrize("make", [slowfast, repository, finetuned])
def test_import_undoes_export_bit_for_bit(make):
    arrays = weights_of(make())
    theirs = released(arrays)
    family = recognise({f"module.{name}": array for name, array in theirs.items()})
    assert (family.tubelet, family.channels) == (TUBELET, 3)
    assert "CC BY-NC 4.0" in family.licence and "Apache 2.0" in family.licence
    ours, report = to_ours(theirs, family.table)
    assert_equal(ours, arrays)
    assert set(report.mapped) == set(theirs) and not report.ignored


def test_names_are_those_of_the_published_files():
    theirs = released(weights_of(slowfast()))
    shapes = {name: array.shape for name, array in theirs.items()}
    for name, shape in {  # mae_st.md 7.2, scaled down
        "cls_token": (1, 1, 12),
        "pos_embed_spatial": (1, 16, 12),
        "pos_embed_temporal": (1, 4, 12),
        "pos_embed_class": (1, 1, 12),
        "patch_embed.proj.weight": (12, 3, 2, 4, 4),
        "blocks.1.attn.k.bias": (12,),
        "norm.weight": (12,),
        "decoder_embed.bias": (8,),
        "decoder_pos_embed": (1, 65, 8),
        "mask_token": (1, 1, 8),
        "pred_head.transforms.0.1.attn.q.weight": (8, 8),
        "pred_head.transforms.0.2.weight": (8,),
        "pred_head.projections.0.weight": (48, 8),
    }.items():
        assert shapes[name] == shape, name
    assert not [name for name in shapes if name.startswith("decoder_cls")]
    theirs = released(weights_of(repository()))
    assert theirs["decoder_cls_token"].shape == (1, 1, 8)
    assert theirs["decoder_pos_embed_class"].shape == (1, 1, 8)
    assert theirs["decoder_blocks.1.mlp.fc1.weight"].shape == (32, 8)
    assert theirs["decoder_pred.bias"].shape == (48,)


def test_a_fused_projection_is_the_same_as_three():
    arrays = weights_of(slowfast())
    theirs = released(arrays)
    for block in ("blocks.0", "blocks.1", "pred_head.transforms.0.0", "pred_head.transforms.0.1"):
        for kind in ("weight", "bias"):
            parts = [theirs.pop(f"{block}.attn.{x}.{kind}") for x in "qkv"]
            theirs[f"{block}.attn.qkv.{kind}"] = np.concatenate(parts)
    assert_equal(to_ours(theirs, recognise(theirs).table)[0], arrays)


def test_classifiers_of_pyslowfast_are_read_too():
    arrays = weights_of(finetuned())
    theirs = released(arrays)
    for kind in ("weight", "bias"):
        theirs[f"head.projection.{kind}"] = theirs.pop(f"head.{kind}")
    assert_equal(to_ours(theirs, recognise(theirs).table)[0], arrays)


def test_a_classifier_goes_on_with_the_encoders_norm():
    arrays = weights_of(slowfast())
    template = shapes_of(finetuned())
    report = to_ours(released(arrays), released_table(arrays, TUBELET, 3))[1]
    fitted = fit(arrays, report, template, policy=starting_policy(template))
    np.testing.assert_array_equal(fitted.arrays["fc_norm/scale"], arrays["encoder/norm/scale"])
    assert fitted.report.mapped["norm.bias"] == ("fc_norm/bias",)
    assert set(fitted.report.fresh) == {"head/kernel", "head/bias"}
    assert fitted.report.ignored["decoder_embed.weight"] == "the classifier has no decoder"


def test_learned_positions_of_another_grid_are_interpolated():
    arrays = weights_of(slowfast())
    config = slowfast().unlock()
    config.data.update(frames=4, size=(24, 16))
    grid = config_lib.clip_grid(config)
    fitted = fit(arrays, Report({}, {}), shapes_of(config.lock()), grid=grid).arrays
    for name, source, target in (
        ("encoder/pos_embed_spatial", (1, 4, 4), (1, 6, 4)),
        ("encoder/pos_embed_temporal", (4, 1, 1), (2, 1, 1)),
    ):
        expected = resize_positions(arrays[name], source, target)
        np.testing.assert_array_equal(fitted[name], expected)
    # The separable tables tell what grid the joint one is of.
    joint, ours = arrays["decoder/pos_embed"], fitted["decoder/pos_embed"]
    np.testing.assert_array_equal(ours[0], joint[0])  # of the class token
    np.testing.assert_array_equal(ours[1:], resize_positions(joint[1:], (4, 4, 4), (2, 6, 4)))


@pytest.mark.parametrize("make", [slowfast, repository, finetuned])
def test_the_recipe_is_read_off_names_and_shapes(make, tmp_path):
    config = make().unlock()
    for name in {"encoder", "decoder"} & set(config.model):
        config.model[name].update(width=64, heads=1)  # as many channels a head as published
    save_released(tmp_path, weights_of(config), config, licence="CC BY-NC 4.0")
    found = config_of(read(tmp_path / "model.safetensors"))
    for field in ("positions", "class_token", "key_bias", "init", "tubelet"):
        assert found.model[field] == config.model[field], field
    assert found.system == config.system
    assert found.data.frames == 8 and found.data.size == (16, 16)
    assert found.data.mean == (0.45, 0.45, 0.45)
    if config.system == "mae_st":
        for field in ("decoder_positions", "decoder_class_token"):
            assert found.model[field] == config.model[field], field
        assert found.masking.target_frames == config.masking.target_frames


@pytest.mark.parametrize(("decoder_class", "heads"), [(False, 8), (True, 16)])
def test_heads_of_the_decoder_tell_the_implementations_apart(decoder_class, heads):
    shapes = {
        "encoder/blocks/mlp/fc1/kernel": (24, 1024, 4096),
        "encoder/cls_token": (1024,),
        "decoder/blocks/mlp/fc1/kernel": (4, 512, 2048),
        "decoder/norm/scale": (512,),
        "decoder/head/bias": (768,),
        "encoder_to_decoder/bias": (512,),
    }
    shapes |= {"decoder/cls_token": (512,)} if decoder_class else {}
    arrays = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    source = Source(
        "x", "file", "", arrays, Report({}, {}), "0", "", tubelet=(2, 16, 16), channels=3
    )
    config = config_of(source)
    assert (config.model.encoder.heads, config.model.decoder.heads) == (16, heads)
