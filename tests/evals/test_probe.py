import functools

import jax
import jax.numpy as jnp
import made
import ml_dtypes
import numpy as np
import pytest

from vmae_jax import assemble, config, systems
from vmae_jax.evals import passes
from vmae_jax.evals.features import Features, check_room, make_extract, read_features
from vmae_jax.evals.heads import correct_at
from vmae_jax.evals.hook import make_hook
from vmae_jax.evals.probe import probe, summary
from vmae_jax.tools import probe as tool
from vmae_jax.train.sharding import make_mesh

CLASSES, WIDTH, TOKENS = 3, 16, 6


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    return made.videos(tmp_path_factory.mktemp("videos"), 11, bad=(4,))


def features(count, seed, *, missing=()):
    """The class is in one token of six, far from the mean of all in no single direction alone."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    directions = np.random.default_rng(9).normal(size=(CLASSES, WIDTH))
    tokens = 0.3 * rng.normal(size=(count, TOKENS, WIDTH))
    tokens[np.arange(count), rng.integers(TOKENS, size=count)] += directions[labels]
    return Features(
        pooled=np.float32(tokens.mean(axis=1)),
        tokens=tokens.astype(ml_dtypes.bfloat16),
        labels=labels,
        missing=np.array(missing, np.int32),
    )


@pytest.mark.parametrize("mesh", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_probes_find_what_is_there_and_count_what_cannot_be_read_as_wrong(mesh):
    train, val = features(90, 0), features(30, 1, missing=[0] * 10)
    probes = ("knn", "linear", "attentive")
    with jax.set_mesh(make_mesh(mesh or 1, jax.devices() if mesh else jax.devices()[:1])):
        scores = probe(probes, train, val, classes=CLASSES, groups={"b": [1], "ac": [0, 2]})
    best = summary(scores)
    # 30 of 40 videos have features; the classes can be told apart, all but perfectly.
    for name in probes:
        assert 0.65 <= best[f"{name}_top1"] <= 0.75 and best[f"{name}_top5"] == 0.75, best
        # The lost ones are of class 0: 10 of the 30 videos of classes 0 and 2 can be right twice.
        assert best[f"{name}_top1 b"] >= 0.8 and 0.5 <= best[f"{name}_top1 ac"] <= 2 / 3, best
    assert set(scores["linear"]) == {f"lr={r:g}" for r in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}


@pytest.mark.slow
def test_probes_of_noise_are_no_better_than_chance():
    train, val = features(60, 0), features(60, 1)
    shuffled = np.random.default_rng(0).permutation(train.labels)
    blind = Features(train.pooled, train.tokens, shuffled, train.missing)
    best = summary(probe(("knn", "linear"), blind, val, classes=CLASSES))
    assert max(best["knn_top1"], best["linear_top1"]) < 0.6


def test_neighbours_vote_by_weight_as_counted_by_hand():
    angles = np.deg2rad([0.0, 10.0, 80.0, 90.0, 100.0])
    x = np.float32(np.stack([np.cos(angles), np.sin(angles)], axis=1)) * [[1], [9], [2], [3], [1]]
    none = np.array([], np.int32)
    train = Features(np.float32(x), None, np.array([0, 1, 2, 2, 2], np.int32), none)
    at = np.deg2rad(4.0)
    asked = np.float32([[np.cos(at), np.sin(at)]])
    val = [Features(asked, None, np.array([label], np.int32), none) for label in (0, 1)]
    # One neighbour, or five of which two are near: the one at 0 degrees is nearer than that at 10.
    for label, expected in ((0, 1.0), (1, 0.0)):
        scores = probe(("knn",), train, val[label], classes=3)["knn"]
        assert {name: s["top1"] for name, s in scores.items()} == {"k=1": expected, "k=5": expected}


def test_rank_of_the_label_by_hand():
    answers = jnp.array(
        [[3.0, 2, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [np.nan] * 6]
    )
    # The first; the fifth, behind three equal ones that come earlier; the sixth; never.
    found = correct_at(answers, jnp.array([0, 3, 5, 0]))
    assert found.tolist() == [[True, False, False, False], [True, True, False, False]]


@functools.cache
def pretraining():
    return systems.build(made.config("videomae"))


def options(listed):
    tested = passes.as_tested(made.config("videomae"), manifest=str(listed), root="")
    return assemble.pipeline_options(tested)


def test_features_are_those_of_each_clip_in_order(listed):
    system = pretraining()
    params = system.init(jax.random.key(0))
    extract = make_extract(system, ("pooled", "tokens"))
    with jax.set_mesh(make_mesh(1)), passes.open_pass(options(listed)) as pipeline:
        found = read_features(extract, params, pipeline)
    assert found.missing.tolist() == [4 % 3]
    assert found.labels.tolist() == [i % 3 for i in range(11) if i != 4]
    with passes.open_pass(options(listed)) as pipeline:
        video = next(pipeline).arrays["video"]
    pooled = jax.jit(system.encoder.pooled)(params, {"video": video[:11]})
    np.testing.assert_allclose(found.pooled, np.delete(pooled, 4, axis=0), atol=2e-5)
    np.testing.assert_allclose(
        np.float32(found.tokens).mean(axis=1), found.pooled, rtol=0, atol=0.01
    )


def test_features_that_do_not_fit_are_refused_with_the_number():
    # Two bytes for each of 8 tokens of width 16, four for the pooled: 320 bytes a clip.
    kinds, gib = ("pooled", "tokens"), 320 * 1000 / 2**30
    check_room(pretraining(), kinds, clips=1000, max_gib=gib)
    with pytest.raises(passes.EvaluationError, match=r"1001 clips take 0\.000298 GiB on each host"):
        check_room(pretraining(), kinds, clips=1001, max_gib=gib)


def test_hook_probes_an_encoder_and_validates_a_classifier(listed):
    recipe = made.config("videomae")
    recipe.eval.update(every=5, manifest=str(listed), train_manifest=str(listed), probes=("knn",))
    system = pretraining()
    with jax.set_mesh(make_mesh(1)):
        hook = make_hook(system, recipe, assemble.pipeline_options)
        figures = hook(system.init(jax.random.key(0)))
    # Learned and asked on the same videos: the nearest is the video itself. One is unreadable.
    assert figures["knn_top1"] == pytest.approx(10 / 11)
    assert set(figures) == {"knn_top1", "knn_top5"}

    recipe = made.config()
    recipe.eval.update(every=5, manifest=str(listed))
    system = systems.build(recipe)
    with jax.set_mesh(make_mesh(1)):
        figures = make_hook(system, recipe, assemble.pipeline_options)(
            system.init(jax.random.key(0))
        )
    assert set(figures) == {"val_top1", "val_top5", "val_class_mean", "val_failures"}
    assert figures["val_failures"] == 1 and 0 <= figures["val_top1"] <= 10 / 11
    recipe.model.num_classes = 2
    with pytest.raises(passes.EvaluationError, match="labels of 3 classes, and the model 2"):
        make_hook(system, recipe, assemble.pipeline_options)
    recipe.eval.manifest = ""
    with pytest.raises(config.ConfigError, match=r"eval\.manifest is empty"):
        make_hook(system, recipe, assemble.pipeline_options)
    recipe.eval.every = 0
    assert make_hook(system, recipe, assemble.pipeline_options) is None


def test_command_compares_with_random_weights(listed, tmp_path, capsys):
    weights = made.folder_of(tmp_path / "weights", "videomae")
    flags = [
        f"--train={listed}",
        f"--val={listed}",
        "--probes=knn",
        "--augment_views=2",
        "--group=^dark_",
    ]
    out = f"--out={tmp_path / 'scores.json'}"
    assert tool.main([f"--weights={weights}", *flags, out, "--against_random"]) == 0
    header, top1, _, dark = capsys.readouterr().out.splitlines()
    assert dark.startswith("knn_top1 ^dark_ ")
    assert header.split() == ["weights", "random"] and top1.split()[0] == "knn_top1"
    # The weights are those of seed 0, as are the random ones.
    assert len(set(top1.split()[1:])) == 1
    bare = tmp_path / "bare.csv"
    bare.write_text("path\nv0.mp4\n")
    flags = [f"--train={bare}", f"--train_root={listed.parent}", f"--val={listed}"]
    assert tool.main([f"--weights={weights}", *flags]) == 1
    assert "has no labels; a probe needs" in capsys.readouterr().err
