"""The converter on files: every way out and back in, and what it refuses."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vmae_jax import assemble, systems
from vmae_jax import config as config_lib
from vmae_jax.convert import export
from vmae_jax.convert.engine import Report, flatten, unflatten
from vmae_jax.convert.sources import Source, hash_arrays
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.models.vit import Classifier
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vmae_jax.ops.tokens import gather
from vmae_jax.tools import convert
from vmae_jax.train.sharding import make_mesh, state_shardings
from vmae_jax.variants import StackSpec


def tiny(config, stacks=("encoder",)):
    """Widths whose heads can be inferred, other sizes that tell axes apart."""
    config = config.unlock()
    for stack, width in zip(stacks, (128, 64), strict=False):
        config.model[stack].update(width=width, depth=2, heads=width // 64, remat="none")
    config.model.tubelet = (2, 8, 8)
    config.model.dtype = "float32"
    config.data.update(frames=4, size=(32, 32), stride=1)
    return config


def pretraining():
    return tiny(config_lib.pretrain_defaults(), ("encoder", "decoder"))


def finetuning(pooling="mean"):
    config = tiny(config_lib.finetune_defaults())
    config.model.update(num_classes=5, pooling=pooling)
    return config


def spec_of(part):
    return StackSpec(part.width, part.depth, part.heads, part.mlp_ratio)


def random_params(config):
    shapes = jax.eval_shape(systems.build(config).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    arrays = {p: rng.normal(size=x.shape).astype(np.float32) for p, x in flatten(shapes).items()}
    for path in arrays:
        if path.endswith("norm/scale") or ("/norm" in path and path.endswith("scale")):
            arrays[path] = 1 + 0.1 * arrays[path]
        elif path.endswith("kernel"):
            arrays[path] *= 0.1
    return arrays


def folder_of_ours(folder, config):
    arrays = random_params(config)
    report = Report({path: (path,) for path in arrays}, {})
    source = Source("made", "test", "vmae_jax", arrays, report, hash_arrays(arrays), "MIT")
    export.save_ours(folder, arrays, config, source=source, licence="MIT")
    return folder, arrays


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return folder_of_ours(tmp_path_factory.mktemp("ours"), pretraining())


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    config = finetuning()
    config.model.class_names = ("run", "jump", "sit", "fall", "wave")
    return folder_of_ours(tmp_path_factory.mktemp("ours"), config)


def assert_equal(ours, expected):
    assert set(ours) == set(expected)
    for path, array in expected.items():
        assert ours[path].dtype == np.float32
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


@pytest.mark.parametrize("target", ["vmae", "released", "transformers"])
def test_a_round_trip_of_a_pretraining_network_is_exact(pretrained, tmp_path, target, capsys):
    source, arrays = pretrained
    there, back = tmp_path / "there", tmp_path / "back"
    assert convert.main([str(source), f"--to={target}", f"--out={there}"]) == 0
    sizes = ["--frames=4", "--size=32"] if target == "released" else []
    assert convert.main([str(there), f"--out={back}", *sizes]) == 0
    assert_equal(load_file(back / "model.safetensors"), arrays)
    config = assemble.read_weights(str(back)).config
    for part in ("encoder", "decoder"):
        assert config["model"][part]["heads"] == config["model"][part]["width"] // 64
    assert config["model"]["tubelet"] == [2, 8, 8]
    assert config["data"]["frames"] == 4 and config["data"]["size"] == [32, 32]
    printed = capsys.readouterr().out
    assert f"{len(arrays)} arrays mapped" in printed
    assert "licence: MIT" in printed


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("target", ["vmae", "released", "transformers"])
def test_a_round_trip_of_a_classifier_is_exact(tmp_path, target, pooling):
    source, arrays = folder_of_ours(tmp_path / "ours", finetuning(pooling))
    there, back = tmp_path / "there", tmp_path / "back"
    assert convert.main([str(source), f"--to={target}", f"--out={there}"]) == 0
    sizes = ["--frames=4", "--size", "32", "32"] if target == "released" else []
    assert convert.main([str(there), f"--out={back}", *sizes]) == 0
    assert_equal(load_file(back / "model.safetensors"), arrays)
    model = assemble.read_weights(str(back)).config["model"]
    assert (model["num_classes"], model["pooling"]) == (5, pooling)


def test_names_of_classes_travel(finetuned, tmp_path, capsys):
    source, _ = finetuned
    names = ("run", "jump", "sit", "fall", "wave")
    assert convert.main([str(source), "--to=transformers", f"--out={tmp_path / 'port'}"]) == 0
    content = json.loads((tmp_path / "port" / "config.json").read_text())
    assert content["id2label"]["3"] == "fall" and content["label2id"]["fall"] == 3
    assert assemble.open_model(str(tmp_path / "port")).class_names == names
    (tmp_path / "map.json").write_text("[4, 0]")
    taken = [f"--label_map={tmp_path / 'map.json'}", f"--out={tmp_path / 'two'}"]
    assert convert.main([str(source), *taken]) == 0
    model = assemble.open_model(str(tmp_path / "two"))
    assert model.class_names == ("wave", "run") and model.config.model.num_classes == 2
    taken[1] = f"--out={tmp_path / 'two_of_port'}"
    assert convert.main([str(tmp_path / "port"), *taken]) == 0
    assert assemble.open_model(str(tmp_path / "two_of_port")).class_names == ("wave", "run")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne f\n")
    given = [f"--classes={tmp_path / 'classes.txt'}", f"--out={tmp_path / 'five'}"]
    assert convert.main([str(source), *given]) == 0
    assert assemble.open_model(str(tmp_path / "five")).class_names == ("a", "b", "c", "d", "e f")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    given = [f"--classes={tmp_path / 'classes.txt'}", f"--out={tmp_path / 'x'}"]
    assert convert.main([str(source), *given]) == 1
    assert "2 names of classes for a head with 5" in capsys.readouterr().err


def test_a_classifier_starts_from_a_pretraining_network(pretrained):
    source, arrays = pretrained
    config = finetuning()
    config.init_from = str(source)
    mesh = make_mesh(fsdp=2)
    init = systems.build(config).init
    shapes = jax.eval_shape(init, jax.random.key(0))
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_shardings(shapes, mesh),
    )
    params = flatten(assemble.initial_weights(config)(abstract))
    begun = flatten(init(jax.random.key(config.seed)))
    assert set(params) == set(begun)
    for path, array in params.items():
        expected = begun[path] if path.split("/")[0] in ("fc_norm", "head") else arrays[path]
        np.testing.assert_allclose(array, expected, rtol=1e-6, err_msg=path)
        assert array.sharding == flatten(abstract)[path].sharding


PROGRAM = """
import pathlib, sys, numpy as np
from jax import export
from safetensors.numpy import load_file
folder, given, out = sys.argv[1:]
weights = load_file(pathlib.Path(folder) / "model.safetensors")
video = np.load(given)
results = {}
for path in pathlib.Path(folder).glob("*.stablehlo"):
    program = export.deserialize(bytearray(path.read_bytes()))
    results[path.stem] = program.call(weights, video)
single = program.call(weights, video[:1])  # of any number of clips
np.testing.assert_allclose(single, results[path.stem][:1], rtol=1e-5, atol=1e-6)
assert not [name for name in sys.modules if name.startswith("vmae_jax")]
np.savez(out, **results)
"""


def test_programs_run_without_us_on_any_number_of_clips(finetuned, tmp_path):
    source, _ = finetuned
    assert convert.main([str(source), "--to=stablehlo", f"--out={tmp_path / 'out'}"]) == 0
    video = np.random.default_rng(2).integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    np.save(tmp_path / "video.npy", video)
    files = [str(tmp_path / name) for name in ("out", "video.npy", "results.npz")]
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", PROGRAM, *files]
    subprocess.run(command, check=True, cwd=tmp_path, env=elsewhere)
    model = assemble.open_model(str(source))
    encoder, batch = model.system.encoder, {"video": jnp.asarray(video)}
    expected = {
        "features": encoder.pooled(model.params, batch),
        "tokens": encoder.tokens(model.params, batch, encoder.depth),
        "logits": model.system.logits(model.params, batch),
    }
    with np.load(tmp_path / "results.npz") as results:
        assert set(results) == set(expected)
        for name, array in expected.items():
            assert results[name].dtype == np.float32
            largest = float(np.abs(array).max())
            np.testing.assert_allclose(results[name], array, rtol=0, atol=1e-5 * largest)


PORT = """
import sys, numpy, torch, transformers
folder, name, given, out = sys.argv[1:]
make = getattr(transformers, name)
model, info = make.from_pretrained(folder, output_loading_info=True)
assert not any(info.values()), info
inputs = {key: torch.from_numpy(value) for key, value in numpy.load(given).items()}
with torch.no_grad():
    numpy.save(out, model.eval()(**inputs).logits.numpy())
processor = transformers.AutoImageProcessor.from_pretrained(folder)
assert processor.size.shortest_edge == 32 and processor.image_mean[0] == 0.485, processor
"""


def logits_of_port(folder, name, tmp_path, **inputs):
    """Logits of transformers' model in a process of its own."""
    np.savez(tmp_path / "in.npz", **inputs)
    command = [sys.executable, "-W", "ignore", "-c", PORT, str(folder), name]
    subprocess.run([*command, str(tmp_path / "in.npz"), str(tmp_path / "out.npy")], check=True)
    return np.load(tmp_path / "out.npy")


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
    reason="needs PyTorch and transformers (extra: bench)",
)


def clips_of(config, seed=1):
    """Two normalised clips, float32 [2, T, H, W, C]."""
    shape = (2, config.data.frames, *config.data.size, config.model.channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@needs_transformers
@pytest.mark.slow
def test_transformers_predicts_what_we_predict(pretrained, tmp_path):
    source, arrays = pretrained
    config = pretraining()
    assert convert.main([str(source), "--to=transformers", f"--out={tmp_path / 'port'}"]) == 0
    clip = clips_of(config)
    hidden = np.stack([np.random.default_rng(b).permutation(32) < 24 for b in range(2)])
    port = logits_of_port(
        tmp_path / "port",
        "VideoMAEForPreTraining",
        tmp_path,
        pixel_values=clip.transpose(0, 1, 4, 2, 3),
        bool_masked_pos=hidden,
    )

    def ours(norm_eps):
        net = functional(
            lambda rngs: MaskedAutoencoder(
                spec_of(config.model.encoder),
                spec_of(config.model.decoder),
                values=2 * 8 * 8 * 3,
                encoder_options=StackOptions(),
                decoder_norm_eps=norm_eps,
                rngs=rngs,
            )
        )
        patches = patchify(jnp.asarray(clip), (2, 8, 8))
        visible, target = (
            np.stack([np.flatnonzero(row) for row in mask]) for mask in (~hidden, hidden)
        )
        seen = gather(patches, visible)
        with jax.default_matmul_precision("highest"):
            return net.apply(unflatten(arrays), seen, visible, target, grid=(2, 4, 4))

    assert_close(port, ours)


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_transformers_classifies_as_we_do(tmp_path, pooling):
    config = finetuning(pooling)
    source, arrays = folder_of_ours(tmp_path / "ours", config)
    assert convert.main([str(source), "--to=transformers", f"--out={tmp_path / 'port'}"]) == 0
    clip = clips_of(config)
    port = logits_of_port(
        tmp_path / "port",
        "VideoMAEForVideoClassification",
        tmp_path,
        pixel_values=clip.transpose(0, 1, 4, 2, 3),
    )

    def ours(pooled_eps):
        net = functional(
            lambda rngs: Classifier(
                spec_of(config.model.encoder),
                StackOptions(),
                values=2 * 8 * 8 * 3,
                num_classes=5,
                pooling=pooling,
                pooled_eps=pooled_eps,
                rngs=rngs,
            )
        )
        patches = patchify(jnp.asarray(clip), (2, 8, 8))
        with jax.default_matmul_precision("highest"):
            return net.apply(unflatten(arrays), patches, grid=(2, 4, 4))

    assert_close(port, ours)


WRITTEN = """
import sys, numpy, torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification
torch.manual_seed(0)
config = VideoMAEConfig(
    image_size=32, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=64, num_labels=5, initializer_range=0.2,
)
model = VideoMAEForVideoClassification(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    clip = torch.from_numpy(numpy.load(sys.argv[2]))
    numpy.save(sys.argv[3], model(clip).logits.numpy())
model.save_pretrained(sys.argv[1], max_shard_size="20KB")
"""


@needs_transformers
@pytest.mark.slow
def test_a_folder_that_transformers_wrote_classifies_as_there(tmp_path):
    video = np.random.default_rng(4).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    clip = (video / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.save(tmp_path / "clip.npy", clip.astype(np.float32).transpose(0, 1, 4, 2, 3))
    files = [str(tmp_path / name) for name in ("port", "clip.npy", "logits.npy")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITTEN, *files], check=True)
    assert (tmp_path / "port" / "model.safetensors.index.json").is_file()  # in shards
    model = assemble.open_model(str(tmp_path / "port"), **{"model.dtype": "float32"})
    assert model.config.model.encoder.heads == 4
    with jax.default_matmul_precision("highest"):
        ours = model.system.logits(model.params, {"video": jnp.asarray(video)})
    port = np.load(tmp_path / "logits.npy")
    # Its epsilons are 1e-12 and 1e-5, ours 1e-6; the variances here are above 0.1.
    np.testing.assert_allclose(ours, port, rtol=0, atol=5e-5 * np.abs(port).max())


def assert_close(port, ours):
    """Equal up to rounding with the port's epsilon; with ours, to what 1e-5 for 1e-6 can do."""
    assert np.abs(port).max() > 1
    rounding = 2e-6 * np.abs(port).max()
    np.testing.assert_allclose(ours(1e-5), port, rtol=0, atol=rounding)
    # Tokens of variance v change by a factor of about 1 - 4.5e-6 / v, and v is above 1 here.
    change = 4.5e-6 * np.abs(port).max()
    np.testing.assert_allclose(ours(None), port, rtol=0, atol=rounding + change)


def test_a_dry_run_lists_every_name_and_writes_nothing(pretrained, tmp_path, capsys):
    source, arrays = pretrained
    assert convert.main([str(source), "--dry_run", f"--out={tmp_path / 'out'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {f"{path} -> {path}" for path in arrays} <= set(lines)
    assert any("fixed sinusoid" in line and "(2, 4, 4)" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_was_made_of_what(pretrained, tmp_path):
    source, arrays = pretrained
    (tmp_path / "results.json").write_text('{"top1": 81.5, "curve": [1, 2]}')
    more = ["--licence=CC0", f"--metrics={tmp_path / 'results.json'}"]
    assert convert.main([str(source), f"--out={tmp_path / 'out'}", *more]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    parameters = sum(array.size for array in arrays.values())
    for words in (
        f"`{digest}`",
        "CC0.",
        "| top1 | 81.5 |",
        f"| parameters | {parameters:,} (float32) |",
        "4 frames, stride 1, 32 x 32 pixels, patches of 2 x 8 x 8",
        "801 epochs of 1024 videos",
    ):
        assert words in card
    assert "curve" not in card
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as opened:
        assert opened.metadata()["licence"] == "CC0"
    assert f"SHA-256: {digest}" in (tmp_path / "out" / "conversion.txt").read_text()


def test_what_cannot_be_converted_ends_in_a_sentence(pretrained, tmp_path, capsys):
    source, _ = pretrained
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").write_bytes(b"")
    (tmp_path / "bad.json").write_text("[1")
    for arguments, words in (
        ([f"--out={tmp_path / 'full'}"], "is not an empty folder"),
        ([f"--out={tmp_path / 'a'}", "--label_map=nowhere.json"], "label map nowhere.json"),
        ([f"--out={tmp_path / 'a'}", "--metrics=nowhere.json"], "--metrics=nowhere.json"),
        ([f"--out={tmp_path / 'a'}", f"--config={tmp_path / 'bad.json'}"], "bad.json"),
        ([f"--out={tmp_path / 'a'}", "--size=30"], "30"),
        ([f"--out={tmp_path / 'a'}", "--classes=nowhere.txt"], "--classes=nowhere.txt"),
    ):
        assert convert.main([str(source), *arguments]) == 1
        assert words in capsys.readouterr().err
    assert convert.main([str(tmp_path / "nowhere"), "--dry_run"]) == 1
    assert "no weights at" in capsys.readouterr().err


def test_a_model_that_the_port_cannot_hold_is_refused(tmp_path, capsys):
    config = pretraining()
    config.model.layer_scale = 0.1
    config.model.tubelet = (2, 8, 16)
    source, _ = folder_of_ours(tmp_path / "ours", config)
    assert convert.main([str(source), "--to=transformers", f"--out={tmp_path / 'out'}"]) == 1
    message = capsys.readouterr().err
    assert "has no layer scale and no patches of 8 x 16 pixels" in message


def test_open_model_gives_the_weights_of_a_folder_with_their_recipe(pretrained):
    source, arrays = pretrained
    model = assemble.open_model(str(source), **{"data.frames": 8})
    assert_equal({path: np.asarray(x) for path, x in flatten(model.params).items()}, arrays)
    assert model.config.data.frames == 8 and model.config.data.resize == "host"
    assert model.sha256 == hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert model.class_names == ()
    with pytest.raises(config_lib.ConfigError, match="framess"):
        assemble.open_model(str(source), **{"data.framess": 8})


@pytest.mark.parametrize(
    "target", ["transformers", pytest.param("released", marks=pytest.mark.slow)]
)
def test_an_encoder_alone_has_features_and_no_classes(pretrained, finetuned, tmp_path, target):
    # The bare model of transformers ends with its norm; V2's Hub models with that of the mean.
    whole = str((pretrained if target == "transformers" else finetuned)[0])
    assert convert.main([whole, f"--to={target}", f"--out={tmp_path}"]) == 0
    file, clip = tmp_path / "model.safetensors", {"data.frames": 4, "data.size": (32, 32)}
    bare = {
        name.removeprefix("videomae."): array
        for name, array in load_file(file).items()
        if name.startswith("videomae.") or target == "released"
    }
    save_file({k: v for k, v in bare.items() if not k.startswith("head.")}, file)
    model = assemble.open_model(str(tmp_path), **clip, **{"model.dtype": "float32"})
    assert model.system.logits is None and model.class_names == ()
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    expected = assemble.open_model(whole)
    want = expected.system.encoder.pooled(expected.params, {"video": video})
    found = model.system.encoder.pooled(model.params, {"video": video})
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_open_model_lays_weights_out_on_the_mesh_that_is_set(pretrained):
    source, arrays = pretrained
    with jax.set_mesh(make_mesh(fsdp=4)):
        params = assemble.open_model(str(source)).params
    kernel = params["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)
    assert kernel.addressable_shards[0].data.shape == (2, 32, 512)
    np.testing.assert_array_equal(kernel, arrays["encoder/blocks/mlp/fc1/kernel"])
