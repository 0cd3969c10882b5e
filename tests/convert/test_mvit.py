"""PySlowFast's names of multiscale networks, and what their shapes tell."""

import jax
import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert.architecture import config_of
from vmae_jax.convert.engine import (
    ConversionError,
    Report,
    flatten,
    to_ours,
    to_theirs,
    unflatten,
)
from vmae_jax.convert.export import transformers_config
from vmae_jax.convert.families import recognise, released_table
from vmae_jax.convert.fit import EXACT, PRETRAINING, fit, starting_policy
from vmae_jax.convert.mvit import mvit_table
from vmae_jax.convert.sources import Source
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mvit import MViT
from vmae_jax.variants import MVIT_VARIANTS, MViTSpec

SPEC = MViTSpec(4, (1, 2, 3, 2), 1)
HALVES = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 1, 1))
PRETRAINED = MViTSpec(4, (1, 2, 3, 2), 1, strides=HALVES)


def config_with(spec, **changes):
    config = config_lib.finetune_defaults("mvit").unlock()
    config.model.encoder = config_lib.mvit(spec)
    config.model.num_classes = 5
    config.data.update(frames=4, size=(64, 64))
    config.model.update(changes)
    return config.lock()


def random_arrays(shapes):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=s.shape).astype(np.float32) for path, s in shapes.items()}


def weights_of(config):
    shapes = jax.eval_shape(systems.build(config).init, jax.random.key(0))
    return shapes, random_arrays(flatten(shapes))


def pretrained():
    """Random weights of a pretraining network by our paths: the last stage keeps its grid."""
    build = functional(
        lambda rngs: MViT(
            PRETRAINED, StackOptions(), grid=(2, 16, 16), tubelet=(2, 4, 4), rngs=rngs
        )
    )
    arrays = {f"encoder/{path}": array for path, array in flatten(build.shapes).items()}
    head = {"mask_token": (4,), "head/norm/scale": (32,), "head/norm/bias": (32,)}
    head |= {"head/proj/kernel": (32, 108), "head/proj/bias": (108,)}
    arrays |= {path: np.empty(shape) for path, shape in head.items()}
    return random_arrays(arrays)


def source_of(arrays):
    return Source("x", "file", "PySlowFast", arrays, Report({}, {}), "0", "", (2, 4, 4), 3)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_import_undoes_export_bit_for_bit(pooling):
    # Of the supervised networks, which pool by the class token, the width grows in the attention.
    spec = {"mean": SPEC, "first": MViTSpec(4, (1, 2, 3, 2), 1, grow_in="attention")}[pooling]
    config = config_with(spec, pooling=pooling)
    shapes, arrays = weights_of(config)
    theirs = to_theirs(unflatten(arrays), released_table(arrays, (2, 4, 4), 3))
    family = recognise({f"module.{name}": array for name, array in theirs.items()})
    assert (family.tubelet, family.channels) == ((2, 4, 4), 3)
    ours, report = to_ours(theirs, family.table)
    assert set(report.mapped) == set(theirs)
    fitted = fit(ours, report, shapes).arrays
    assert set(fitted) == set(arrays)
    for path, array in arrays.items():
        np.testing.assert_array_equal(fitted[path], array, err_msg=path)
    # What the shapes tell, of single blocks as of stacked ones.
    for told in (config_of(source_of(ours)), config_of(source_of(arrays))):
        for group in ("model", "data"):
            fields = {k: v for k, v in config[group].items() if k != "encoder"}
            assert {k: told[group][k] for k in fields} == fields
        assert told.model.encoder == config.model.encoder


def test_names_and_shapes_are_those_of_the_released_files():
    config = config_with(MVIT_VARIANTS["S"]).copy_and_resolve_references().unlock()
    config.data.update(frames=16, size=(224, 224))
    config.model.num_classes = 400
    shapes = jax.eval_shape(systems.build(config).init, jax.random.key(0))
    empty = {path: np.broadcast_to(np.float32(0), s.shape) for path, s in flatten(shapes).items()}
    theirs = {k: v.shape for k, v in to_theirs(unflatten(empty), mvit_table()).items()}
    assert len(theirs) == 397  # reference/maskfeat.md 9
    for name, shape in {
        "cls_token": (1, 1, 96),
        "patch_embed.proj.weight": (96, 3, 3, 7, 7),
        "blocks.3.attn.qkv.weight": (1152, 384),
        "blocks.12.attn.pool_k.weight": (96, 1, 3, 3, 3),
        "blocks.12.attn.rel_pos_w": (27, 96),
        "blocks.15.attn.rel_pos_h": (13, 96),
        "blocks.15.attn.rel_pos_t": (15, 96),
        "blocks.13.mlp.fc2.weight": (768, 1536),
        "blocks.13.proj.weight": (768, 384),
        "head.projection.weight": (400, 768),
    }.items():
        assert theirs[name] == shape, name
    assert {name.split(".")[1] for name in theirs if ".proj.w" in name and "attn" not in name} == {
        *("proj", "0", "2", "13")
    }


def test_pretraining_weights_start_a_classifier_with_tables_resampled():
    arrays, config = pretrained(), config_with(SPEC)
    theirs = to_theirs(unflatten(arrays), mvit_table())
    theirs["hogs.0.weight_x"] = np.zeros((3, 1, 3, 3), np.float32)
    shapes, _ = weights_of(config)
    ours, report = to_ours(theirs, recognise(theirs).table)
    fitted = fit(ours, report, shapes, policy=starting_policy(shapes))
    # Blocks 6 and 7 were one stack of tables for 4 x 4 queries; block 7 has 2 x 2 of them now.
    table = arrays["encoder/blocks/06/attn/rel_pos_h"]
    assert table.shape[:2] == (2, 7)
    found = fitted.arrays["encoder/blocks/07/attn/rel_pos_h"]
    # Rows at (r + 0.5) * 7 / 3 - 0.5 = 2/3, 3, 16/3 of the old table.
    expected = [table[1, 0] / 3 + table[1, 1] * 2 / 3, table[1, 3]]
    expected += [table[1, 5] * 2 / 3 + table[1, 6] / 3]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fitted.arrays["encoder/blocks/06/attn/rel_pos_h"][0], table[0])
    text = str(fitted.report)
    assert "blocks/07/attn/rel_pos_w was resampled from 7 to 3 distances" in text
    assert set(fitted.report.fresh) == {
        *("fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias")
    }
    ignored = {name for name in fitted.report.ignored if name.startswith(("pred", "mask", "hogs"))}
    assert ignored == set(fitted.report.ignored) and len(ignored) == 6
    with pytest.raises(ConversionError, match="mask_token"):
        fit(ours, report, shapes, policy=EXACT)


def test_a_pretraining_network_is_recognised_and_written_back():
    arrays = pretrained()
    config = config_of(source_of(arrays))
    assert (config.system, config.model.encoder.strides) == ("maskfeat", HALVES)
    assert (config.data.frames, config.data.size) == (4, (64, 64))
    theirs = to_theirs(unflatten(arrays), released_table(arrays, (2, 4, 4), 3))
    ours, _ = to_ours(theirs, recognise(theirs).table)
    template = unflatten(arrays)
    assert starting_policy(template) is PRETRAINING
    fitted = fit(ours, Report({}, {}), template).arrays
    assert set(fitted) == set(arrays)
    for path, array in arrays.items():
        np.testing.assert_array_equal(fitted[path], array, err_msg=path)


def test_what_others_cannot_hold_is_refused():
    config = config_with(SPEC)
    with pytest.raises(ConversionError, match="no multiscale network"):
        transformers_config({}, config)
    arrays = pretrained()
    arrays["encoder/blocks/06/attn/rel_pos_h"] = np.zeros((2, 9, 4), np.float32)
    with pytest.raises(ConversionError, match="lengths of no released network"):
        config_of(source_of(arrays))
