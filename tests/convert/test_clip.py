"""CLIP's image towers in, out and into a teacher, from each of the layouts they come in."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vmae_jax import assemble, chips
from vmae_jax import config as config_lib
from vmae_jax.convert import sources
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import ConversionError, flatten, to_theirs, unflatten
from vmae_jax.ops.bicubic import bicubic_matrix
from vmae_jax.systems.image_teacher import image_teacher
from vmae_jax.tools import convert

WIDTH, PATCH, OUTPUT = 16, 4, 5


def recipe(**teacher):
    """A miniature of UMT whose teacher sees 12 x 12 pixels."""
    config = config_lib.umt_defaults()
    config.model.encoder.update(width=16, depth=2, heads=2)
    config.model.update(tubelet=(1, 4, 4), dtype="float32")
    config.data.frames = 2
    config.align.layers = 2
    config.teacher.encoder.update(width=WIDTH, depth=2, heads=2)
    config.teacher.update(tubelet=(1, PATCH, PATCH), size=(12, 12), output=OUTPUT)
    config.teacher.update(teacher)
    config.data.size = config.teacher.size
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module")
def arrays():
    """By our paths, every one away from its initial value."""
    shapes = flatten(jax.eval_shape(image_teacher(recipe(), chips.local()).init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=s.shape).astype(np.float32) for path, s in shapes.items()}


def visual(arrays, axes=4):
    """In the names of the extracted files."""
    named = to_theirs(unflatten(arrays), clip_table((1, PATCH, PATCH)))
    if axes == 5:
        named["conv1.weight"] = np.ascontiguousarray(named["conv1.weight"][:, :, None])
    return named


def transformers(arrays):
    """In those of transformers' CLIPModel, with a text tower beside."""
    names = {
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "ln_pre": "vision_model.pre_layrnorm",
        "ln_post": "vision_model.post_layernorm",
        "transformer.resblocks": "vision_model.encoder.layers",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "c_fc": "fc1",
        "c_proj": "fc2",
        "attn.": "self_attn.",
    }
    named = {"logit_scale": np.ones((), np.float32), "text_projection.weight": np.ones((2, 2))}
    named["vision_model.embeddings.position_ids"] = np.arange(10)[None]
    for name, array in visual(arrays).items():
        for old, new in names.items():
            name = name.replace(old, new)
        if name == "proj":
            named["visual_projection.weight"] = np.ascontiguousarray(array.T)
        elif "in_proj_" in name:
            for x, part in zip("qkv", np.split(array, 3), strict=True):
                named[name.replace("in_proj_", f"{x}_proj.")] = part
        else:
            named[name] = array
    return named


def written(path, named):
    save_file(named, path)
    return path


@pytest.mark.parametrize("layout", ["four axes", "five axes", "original", "transformers"])
def test_every_layout_gives_the_same_tower(arrays, tmp_path, layout):
    named = {
        "four axes": lambda: visual(arrays),
        "five axes": lambda: visual(arrays, axes=5),
        "original": lambda: (
            {f"visual.{name}": array for name, array in visual(arrays).items()}
            | {"positional_embedding": np.ones((3, 2)), "logit_scale": np.ones(())}
        ),
        "transformers": lambda: transformers(arrays),
    }[layout]()
    source = sources.read(written(tmp_path / "a.safetensors", named))
    assert source.tower and (source.tubelet, source.channels) == ((1, PATCH, PATCH), 3)
    assert source.arrays.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(source.arrays[path], array)
    assert source.report.mapped.keys() | source.report.ignored.keys() == named.keys()
    reasons = {"original": 2, "transformers": 3}
    assert len(source.report.ignored) == reasons.get(layout, 0)


def test_a_tower_goes_through_the_converter_and_back(arrays, tmp_path, capsys):
    path = written(tmp_path / "vit.safetensors", visual(arrays))
    assert convert.main([str(path), f"--out={tmp_path / 'ours'}", "--licence=mine"]) == 0
    printed = capsys.readouterr().out
    assert "arrays mapped" in printed and sources.sha256(path) in printed
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "config.teacher.weights" in card and "12 x 12 pixels" in card and "mine." in card
    back = convert.main([str(tmp_path / "ours"), "--to=released", f"--out={tmp_path / 'back'}"])
    assert back == 0
    theirs = load_file(tmp_path / "back" / "model.safetensors")
    assert theirs.keys() == visual(arrays).keys()
    for name, array in visual(arrays).items():
        np.testing.assert_array_equal(theirs[name], array)


def test_positions_of_another_size_are_interpolated_but_for_the_first(arrays, tmp_path, capsys):
    path = written(tmp_path / "vit.safetensors", visual(arrays))
    assert convert.main([str(path), "--size=20", f"--out={tmp_path / 'ours'}"]) == 0
    assert "interpolated from a grid (1, 3, 3) to (1, 5, 5)" in capsys.readouterr().out
    table = load_file(tmp_path / "ours" / "model.safetensors")["pos_embed"]
    old, matrix = arrays["pos_embed"], bicubic_matrix(3, 5)
    np.testing.assert_array_equal(table[0], old[0])
    places = np.einsum("yr,rcd,xc->yxd", matrix, old[1:].reshape(3, 3, WIDTH), matrix)
    np.testing.assert_allclose(table[1:], places.reshape(25, WIDTH), atol=1e-5)


def test_a_teacher_takes_its_weights_and_positions_for_its_size(arrays, tmp_path):
    path = written(tmp_path / "vit.safetensors", visual(arrays))
    config = recipe(weights=str(path), size=(20, 20))
    init = image_teacher(config, chips.local()).init
    abstract = jax.eval_shape(init, jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract
    )
    loaded = flatten(assemble.frozen_weights(config)(abstract))
    np.testing.assert_array_equal(loaded["proj/kernel"], arrays["proj/kernel"])
    assert loaded["pos_embed"].shape == (26, WIDTH)


def test_a_tower_that_computes_otherwise_is_refused(arrays, tmp_path):
    save_file(transformers(arrays), tmp_path / "model.safetensors")
    for vision, words in (
        ({"hidden_act": "gelu"}, "activation 'gelu', the model has 'quick_gelu'"),
        ({"num_attention_heads": 4}, "heads 4, the model has 2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision}))
        with pytest.raises(ConversionError, match=words):
            assemble.frozen_weights(recipe(weights=str(tmp_path)))({})


@pytest.mark.parametrize(
    ("lost", "words"),
    [("class_embedding", "no class_embedding"), ("proj", "no proj: this is no vision")],
)
def test_other_networks_with_such_names_are_told_apart(arrays, tmp_path, lost, words):
    named = {name: array for name, array in visual(arrays).items() if name != lost}
    with pytest.raises(ConversionError, match=words):
        sources.read(written(tmp_path / "a.safetensors", named))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to=stablehlo"], "--to=stablehlo"),
        (["--frames=4"], "--frames"),
        (["--size=13"], "patches of 4 x 4"),
    ],
)
def test_what_the_converter_does_not_do_with_towers(arrays, tmp_path, capsys, flags, words):
    path = written(tmp_path / "vit.safetensors", visual(arrays))
    assert convert.main([str(path), f"--out={tmp_path / 'x'}", *flags]) == 1
    assert words in capsys.readouterr().err


def test_a_tower_is_no_model_by_itself(arrays, tmp_path):
    path = written(tmp_path / "vit.safetensors", visual(arrays))
    with pytest.raises(ConversionError, match=r"config\.teacher\.weights of one that learns"):
        assemble.open_model(str(path))
