"""Unmasked Teacher's names: pretraining, fine-tuned, and what a start from either takes."""

import jax
import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert.architecture import config_of
from vmae_jax.convert.engine import ConversionError, flatten, to_ours, to_theirs, unflatten
from vmae_jax.convert.export import save_released, transformers_config
from vmae_jax.convert.families import recognise, released_table
from vmae_jax.convert.fit import fit, starting_policy
from vmae_jax.convert.sources import read


def tiny(classes=5, **model):
    """A tiny classifier of clips of 8 x 224 x 224, with as many channels a head as published."""
    config = config_lib.umt_finetune_defaults().unlock()
    config.model.encoder.update(width=64, depth=3, heads=1)
    config.model.update(num_classes=classes, **model)
    return config


def shapes_of(config):
    return jax.eval_shape(systems.build(config).init, jax.random.key(0))


def pretraining(depth=3, layers=2, output=512):
    """A pretraining network with the encoder of `tiny`."""
    config = config_lib.umt_defaults().unlock()
    config.model.encoder.update(width=64, depth=depth, heads=1)
    config.teacher.encoder.update(width=64, depth=layers, heads=1)
    config.align.layers, config.teacher.output = layers, output
    return config


def weights_of(config, seed=0):
    """Random arrays by our paths."""
    rng = np.random.default_rng(seed)
    shapes = flatten(shapes_of(config))
    return {path: rng.normal(size=s.shape).astype(np.float32) for path, s in shapes.items()}


def stored_positions():
    """A classifier of 16 frames, whose file has its table of positions."""
    config = tiny(positions="frozen")
    config.data.frames = 16
    return weights_of(config)


def released(arrays):
    return to_theirs(unflatten(arrays), released_table(arrays, (1, 16, 16), 3))


def written(arrays, tmp_path):
    """The file of a release, read."""
    save_released(tmp_path, arrays, tiny(), licence="MIT")
    return read(tmp_path / "model.safetensors")


def assert_equal(ours, expected):
    assert set(ours) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


@pytest.mark.parametrize(
    ("arrays", "family"),
    [
        (lambda: weights_of(pretraining()), "Unmasked Teacher"),
        (lambda: weights_of(tiny()), "Unmasked Teacher fine-tuned"),
        (stored_positions, "Unmasked Teacher fine-tuned"),
    ],
)
def test_import_undoes_export_bit_for_bit(arrays, family):
    arrays = arrays()
    theirs = released(arrays)
    found = recognise({f"module.{name}": array for name, array in theirs.items()})
    assert (found.table.name, found.tubelet, found.channels) == (family, (1, 16, 16), 3)
    assert found.licence.startswith("Unmasked Teacher's code: MIT")
    ours, report = to_ours(theirs, found.table)
    assert_equal(ours, arrays)
    assert set(report.mapped) == set(theirs) and not report.ignored


@pytest.mark.parametrize(
    ("depth", "output", "trained", "tuned"), [(12, 512, 184, 162), (24, 768, 340, 318)]
)
def test_names_are_those_of_the_published_files(depth, output, trained, tuned):
    config = tiny()
    config.model.encoder.depth = depth
    assert len(released(weights_of(config))) == tuned  # reference/umt.md, C
    theirs = released(weights_of(pretraining(depth, layers=6, output=output)))
    assert len(theirs) == trained
    for name, shape in {
        "encoder.patch_embed.proj.weight": (64, 3, 1, 16, 16),
        f"encoder.blocks.{depth - 1}.attn.qkv.weight": (192, 64),
        "encoder.blocks.0.attn.q_bias": (64,),
        "encoder.norm.weight": (64,),
        "clip_decoder.5.head.weight": (output, 64),
        "clip_decoder.0.norm.bias": (output,),
    }.items():
        assert theirs[name].shape == shape, name


def test_a_patch_of_one_frame_tells_it_from_videomae_and_a_mask_token_does_not():
    theirs = released(weights_of(tiny()))
    name = "patch_embed.proj.weight"
    assert recognise({name: theirs[name]}).table.name == "Unmasked Teacher fine-tuned"
    two = np.concatenate([theirs[name]] * 2, axis=2)
    assert recognise({name: two}).table.name == "videomae fine-tuned"
    ours = {f"encoder.{name}": theirs[name], "mask_token": np.zeros((1, 1, 64))}
    assert recognise(ours).table.name == "videomae pretraining"
    aligned = {f"encoder.{name}": two, "clip_decoder.0.norm.bias": np.zeros(8)}
    assert recognise(aligned).table.name == "Unmasked Teacher"


def test_a_classifier_begins_with_the_pretrained_encoder_alone():
    arrays, template = weights_of(pretraining()), shapes_of(tiny())
    report = to_ours(released(arrays), released_table(arrays, (1, 16, 16), 3))[1]
    fitted = fit(arrays, report, template, policy=starting_policy(template))
    assert_equal(
        fitted.arrays,
        {p: a for p, a in arrays.items() if not p.startswith(("align/", "encoder/norm/"))},
    )
    assert {path.split("/")[0] for path in fitted.report.fresh} == {"fc_norm", "head"}
    reasons = fitted.report.ignored
    assert reasons["clip_decoder.1.head.weight"] == "the classifier is not aligned with a teacher"
    assert reasons["encoder.norm.bias"] == "mean pooling normalises the pooled vector instead"


def test_a_classifier_begins_with_another_and_keeps_its_norm():
    arrays, template = weights_of(tiny(classes=7)), shapes_of(tiny())
    report = to_ours(released(arrays), released_table(arrays, (1, 16, 16), 3))[1]
    fitted = fit(arrays, report, template, policy=starting_policy(template))
    np.testing.assert_array_equal(fitted.arrays["fc_norm/scale"], arrays["fc_norm/scale"])
    assert set(fitted.report.fresh) == {"head/kernel", "head/bias"}
    stored = stored_positions()
    with pytest.raises(ConversionError, match=r"pos_embed.*no place.*config\.model\.positions"):
        fit(stored, report, template, policy=starting_policy(template))


def test_the_recipe_of_a_pretraining_file_names_the_tower_that_taught_it(tmp_path):
    config = config_of(written(weights_of(pretraining(layers=3)), tmp_path))
    assert (config.system, config.data.frames, config.data.size) == ("umt", 8, (224, 224))
    assert (config.align.layers, config.teacher.output) == (3, 512)
    assert (config.teacher.encoder.width, config.teacher.size) == (768, (224, 224))
    config_lib.validate(config)


def test_the_wider_tower_sees_smaller_pictures(tmp_path):
    config = config_of(written(weights_of(pretraining(output=768)), tmp_path))
    assert (config.teacher.encoder.depth, config.teacher.tubelet) == (24, (1, 14, 14))
    assert config.teacher.size == (196, 196)
    config_lib.validate(config)


def test_the_recipe_of_a_classifier_is_read_off_its_file(tmp_path):
    config = config_of(written(weights_of(tiny()), tmp_path))
    assert (config.system, config.model.num_classes, config.model.tubelet) == (
        "classify",
        5,
        (1, 16, 16),
    )
    assert (config.data.sampling, config.data.frames, config.data.views) == ("sparse", 8, (4, 3))
    assert (config.model.positions, config.model.sincos_grid) == ("sincos", (8, 14, 14))


@pytest.mark.parametrize(
    ("rows", "frames", "size"), [(16 * 196, 16, 224), (8 * 576, 8, 384), (16 * 576, 16, 384)]
)
def test_stored_positions_tell_frames_and_pixels(rows, frames, size, tmp_path):
    arrays = weights_of(tiny())
    arrays["encoder/pos_embed"] = np.zeros((rows, 64), np.float32)
    config = config_of(written(arrays, tmp_path))
    assert (config.model.positions, config.data.frames) == ("frozen", frames)
    assert config.data.size == (size, size)


def test_transformers_can_hold_clips_of_the_pretraining_grid_alone():
    config = tiny()
    assert transformers_config(weights_of(config), config)["tubelet_size"] == 1
    config.data.frames = 16
    with pytest.raises(ConversionError, match="no positions of another grid"):
        transformers_config(weights_of(config), config)


def test_an_encoder_alone_has_features(tmp_path):
    arrays = {p: a for p, a in weights_of(pretraining()).items() if p.startswith("encoder/")}
    source = written(arrays, tmp_path)
    config = config_of(source)
    assert (source.family, config.system) == ("Unmasked Teacher fine-tuned", "classify")
    assert (config.model.num_classes, config.model.pooling) == (0, "normed")
