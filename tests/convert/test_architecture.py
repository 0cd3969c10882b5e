import dataclasses

import numpy as np
import pytest

from vmae_jax import config as config_lib
from vmae_jax.convert.architecture import config_of
from vmae_jax.convert.engine import ConversionError, Report
from vmae_jax.convert.sources import Source
from vmae_jax.variants import (
    VIDEOMAE_DECODERS,
    VIDEOMAE_V2_DECODERS,
    VIT_VARIANTS,
    StackSpec,
)


def blocks(stack, spec):
    hidden = int(spec.width * spec.mlp_ratio)
    return {f"{stack}/blocks/mlp/fc1/kernel": (spec.depth, spec.width, hidden)}


def source(shapes, **facts):
    arrays = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    facts = {"tubelet": (2, 16, 16), "channels": 3, **facts}
    return Source("x", "file", "released", arrays, Report({}, {}), "0", "MIT", **facts)


@pytest.mark.parametrize(
    ("variant", "decoders"),
    [
        *((name, VIDEOMAE_DECODERS) for name in VIDEOMAE_DECODERS),
        *((name, VIDEOMAE_V2_DECODERS) for name in VIDEOMAE_V2_DECODERS),
    ],
)
def test_published_pretraining_networks_are_recognised(variant, decoders):
    encoder, decoder = VIT_VARIANTS[variant], decoders[variant]
    shapes = blocks("encoder", encoder) | blocks("decoder", decoder)
    config = config_of(source(shapes, tubelet=(2, 14, 14) if variant == "g" else (2, 16, 16)))
    assert config.system == "videomae"
    for part, spec in (("encoder", encoder), ("decoder", decoder)):
        fields = config.model[part].to_dict()
        assert {name: fields[name] for name in dataclasses.asdict(spec)} == dataclasses.asdict(spec)
    if variant == "g":
        assert config.model.tubelet == (2, 14, 14)
        assert int(decoder.width * config.model.decoder.mlp_ratio) == 2234
    config_lib.validate(config)


def test_a_classifier_is_recognised():
    shapes = blocks("encoder", VIT_VARIANTS["L"]) | {"head/bias": (174,), "fc_norm/scale": (1024,)}
    config = config_of(source(shapes))
    assert (config.system, config.model.num_classes, config.model.pooling) == (
        "classify",
        174,
        "mean",
    )
    config = config_of(source(shapes | {"encoder/norm/scale": (1024,)}, channels=1))
    assert (config.model.pooling, config.model.channels, len(config.data.mean)) == ("first", 1, 1)


@pytest.mark.parametrize(("norm", "pooling"), [("encoder/norm", "normed"), ("fc_norm", "mean")])
def test_an_encoder_alone_is_a_classifier_without_classes(norm, pooling):
    shapes = blocks("encoder", VIT_VARIANTS["B"]) | {f"{norm}/scale": (768,)}
    config = config_of(source(shapes))
    assert (config.system, config.model.num_classes, config.model.pooling) == (
        "classify",
        0,
        pooling,
    )


def test_what_a_config_of_transformers_says_is_taken():
    theirs = {"num_attention_heads": 4, "num_frames": 8, "image_size": [32, 64]}
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5]}
    shapes = blocks("encoder", StackSpec(48, 2, 4, 2.3)) | {"head/bias": (5,)}
    config = config_of(source(shapes, config=theirs, processor=processor))
    assert (config.model.encoder.heads, config.data.frames, config.data.size) == (4, 8, (32, 64))
    assert int(48 * config.model.encoder.mlp_ratio) == int(48 * 2.3)
    assert (config.data.mean, config.data.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))


def test_names_of_classes_are_taken_and_placeholders_are_not():
    shapes = blocks("encoder", VIT_VARIANTS["S"]) | {"head/bias": (2,)}
    theirs = {"id2label": {"1": "jump", "0": "run"}}
    assert config_of(source(shapes, config=theirs)).model.class_names == ("run", "jump")
    theirs = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert config_of(source(shapes, config=theirs)).model.class_names == ()
    with pytest.raises(ConversionError, match="names no class '0'"):
        config_of(source(shapes, config={"id2label": {"run": 0}}))


def test_other_heads_than_the_published_model_has_are_said(caplog):
    shapes = blocks("encoder", VIT_VARIANTS["S"]) | {"head/bias": (5,)}
    config = config_of(source(shapes, config={"num_attention_heads": 16}))
    assert config.model.encoder.heads == 16
    assert "has 6" in caplog.text


def test_what_shapes_do_not_tell_is_an_error():
    shapes = blocks("encoder", StackSpec(100, 2, 5)) | {"head/bias": (5,)}
    with pytest.raises(ConversionError, match="heads of the encoder, 100 wide, cannot"):
        config_of(source(shapes))
    with pytest.raises(ConversionError, match="no blocks of the encoder"):
        config_of(source({"head/bias": (5,)}))
