"""Each tool takes each kind of network, or says in a sentence why not; on real clips."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import flatten, to_theirs
from vmae_jax.convert.export import save_arrays
from vmae_jax.tools import evaluate, extract, predict, probe, reconstruct
from vmae_jax.variants import MViTSpec

pytestmark = pytest.mark.slow

MULTISCALE = MViTSpec(8, (1, 1), 1, strides=((1, 1, 1), (1, 2, 2)), kv_stride=(1, 2, 2))
CLASSIFIERS = ("mae_st_ft", "mvit_ft", "umt_ft")
NETWORKS = (*CLASSIFIERS, "mae_st", "maskfeat", "maskfeat_image", "umt")
CLASSES, VIDEOS = 3, 4


def recipe(network):
    """A small one of its kind."""
    match network:
        case "mae_st_ft":
            config = config_lib.mae_st_finetune_defaults()
        case "mvit_ft":
            config = config_lib.finetune_defaults("mvit")
        case "mae_st":
            config = config_lib.mae_st_defaults()
            config.model.decoder.update(width=16, depth=1, heads=2)
        case "maskfeat":
            config = config_lib.maskfeat_defaults()
        case "maskfeat_image":
            config = config_lib.maskfeat_defaults("vit")
        case "umt_ft":
            config = config_lib.umt_finetune_defaults()
        case "umt":
            config = config_lib.umt_defaults()
            config.teacher.encoder.update(width=16, depth=2, heads=2)
            config.teacher.update(tubelet=(1, 8, 8), size=(32, 32), output=8)
            config.align.layers = 2
    config = config.unlock()
    config.data.update(frames=min(config.data.frames, 4), size=(32, 32), workers=0)
    if config.model.architecture == "mvit":
        config.model.encoder = config_lib.mvit(MULTISCALE)
    else:
        config.model.encoder.update(width=16, depth=2, heads=2)
        config.model.tubelet = (min(config.model.tubelet[0], 2), 8, 8)
    if network in CLASSIFIERS:
        config.model.update(num_classes=CLASSES, head_scale=1.0)
    config.model.dtype = "float32"
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    """Its name, and the flag that gives random weights of it to a tool."""
    folder, config = tmp_path_factory.mktemp(request.param), recipe(request.param)
    system = systems.build(config)
    params = jax.device_get(jax.jit(system.init)(jax.random.key(0)))
    save_file(flatten(params), folder / "model.safetensors")
    if system.init_frozen:
        tower = jax.device_get(jax.jit(system.init_frozen)(jax.random.key(1)))
        named = to_theirs(tower, clip_table(tuple(config.teacher.tubelet)))
        config.teacher.weights = str(folder / "tower.safetensors")
        save_arrays(folder / "tower.safetensors", named, {})
    (folder / "config.json").write_text(config_lib.to_json(config))
    return request.param, f"--weights={folder}"


@pytest.fixture(scope="module")
def clips(shared, tmp_path_factory):
    """A list of real clips of three classes."""
    actions = shared / "data" / "actions"
    rows = [line.split() for line in (actions / "val.csv").read_text().splitlines()]
    rows = [[row for row in rows if row[1] == str(label)][:VIDEOS] for label in range(CLASSES)]
    path = tmp_path_factory.mktemp("clips") / "list.txt"
    lines = [f"{actions / name} {label}\n" for of_class in rows for name, label in of_class]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def video(clips):
    return clips.read_text().split()[0]


def test_evaluate(network, clips, tmp_path, capsys):
    name, weights = network
    flags = [weights, f"--manifest={clips}", "--root=/", "--views=2,1", f"--out={tmp_path}"]
    status, printed = evaluate.main(flags), capsys.readouterr()
    if name not in CLASSIFIERS:
        assert status == 1 and "has no classes to test" in printed.err
        return
    assert status == 0 and f"{CLASSES * VIDEOS} videos, 2 x 1 views" in printed.out
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["top1"] <= metrics["top5"] == 1.0  # of three classes


def test_predict(network, video, tmp_path, capsys):
    name, weights = network
    status = predict.main([video, weights, "--views=1,1", f"--out={tmp_path / 'seen.png'}"])
    printed = capsys.readouterr()
    if name not in CLASSIFIERS:
        assert status == 1 and "has no classes to test" in printed.err
        return
    shares = [float(line.split("%")[0]) for line in printed.out.splitlines()[1 : 1 + CLASSES]]
    assert status == 0 and sum(shares) == pytest.approx(100, abs=0.02)
    assert Image.open(tmp_path / "seen.png").size[1] > 100


def test_extract(network, video, tmp_path):
    _, weights = network
    assert extract.main([video, weights, f"--out={tmp_path}", "--step=16"]) == 0
    (file,) = tmp_path.rglob("*.npz")
    features = np.load(file)["features"]
    assert features.ndim == 2 and np.isfinite(features).all()
    assert features.std(axis=0).max() > 0  # windows differ


def test_probe(network, clips, tmp_path):
    _, weights = network
    lists = [f"--{of}={clips}" for of in ("train", "val")]
    roots = [f"--{of}_root=/" for of in ("train", "val")]
    out = tmp_path / "scores.json"
    assert probe.main([weights, *lists, *roots, "--probes=knn", f"--out={out}"]) == 0
    assert "knn" in json.dumps(json.loads(out.read_text())["scores"])


def test_reconstruct(network, video, tmp_path, capsys):
    name, weights = network
    status = reconstruct.main([video, weights, f"--out={tmp_path}"])
    if name in CLASSIFIERS:
        assert status == 1 and "predicts no pictures" in capsys.readouterr().err
        return
    picture = np.asarray(Image.open(tmp_path / "reconstructions.png"))
    assert status == 0 and picture.std() > 10
    if name == "umt":
        elsewhere = [video, weights, f"--out={tmp_path}", f"--teacher={tmp_path / 'no.pth'}"]
        assert reconstruct.main(elsewhere) == 1
        assert f"no weights at {tmp_path / 'no.pth'}" in capsys.readouterr().err
