import dataclasses
import importlib.util
import json
import math
import pathlib

import jax
import pytest

from vmae_jax import assemble, systems
from vmae_jax import config as config_lib
from vmae_jax.data.pipeline import PipelineOptions

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(name, mode=""):
    path = next(p for p in CONFIGS if p.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(mode)


# reference/videomae.md 1.8 (decoder depth 4 for S and B, 12 for L and H), videomae_v2.md 1.4.
PARAMETERS = {
    "videomae_s": 24_029_376,
    "videomae_b": 94_210_944,
    "videomae_l": 342_996_992,
    "videomae_h": 692_487_296,
    "v2_vitb": 94_210_944,
    "v2_vitl": 317_782_016,
    "v2_vith": 645_659_392,
    "v2_vitg": 1_026_306_560,
    # mae_st.md 1.8: the repository's model, then PySlowFast's.
    "mae_st_l_k400_repo": 317_731_584,
    "mae_st_b": 100_596_736,
    "mae_st_l": 318_429_440,
    "mae_st_h": 646_375_936,
    # maskfeat.md 0 and 6; of 40 frames ours, where tables alone are larger.
    "maskfeat_s_16x4": 36_253_356,
    "maskfeat_l_16x4": 217_247_580,
    "maskfeat_l_40x3": 217_330_524,
    "maskfeat_image_b": 85_882_476,
    "maskfeat_image_l": 303_413_356,
    # umt.md 0; of the wider teacher ours: six heads of 768 rather than 512.
    "umt_b_k710_l14": 88_005_888 + 6 * 256 * (768 + 3),
    "umt_b": 88_005_888,
    "umt_l": 307_806_720,
}
# Visible and predicted tokens: videomae.md 2 (0.9, 0.75), videomae_v2.md 2.1 and 2.2, mae_st.md 2.
TOKENS = {"videomae": (160, 1408), "v2": (160, 784), "v2_vitg": (208, 1024), "mae": (156, 1412)}
TOKENS |= {"umt": (320, 1248)}  # umt.md A3; those that are hidden are not predicted
# Cells that are hidden together: maskfeat.md 3.
CELLS = {"s": (8, 7, 7), "l": (8, 7, 7), "l_40x3": (20, 7, 7), "image": (1, 14, 14)}
SMALL_SETS = ("videomae_b_ucf101", "videomae_b_hmdb51")
PRETRAINING = [p.stem for p in CONFIGS if not p.stem.endswith(("_ft", "_distill"))]
FINETUNING = [p.stem for p in CONFIGS if p.stem not in PRETRAINING]
# Trunk with fc_norm (reference/videomae.md 1.8, videomae_v2.md 1.4); a head of K classes adds
# K * (width + 1).
TRUNKS = {
    "s": (21_879_936, 384),
    "b": (86_227_200, 768),
    "l": (303_860_736, 1024),
    "h": (631_607_040, 1280),
    "g": (1_011_610_752, 1408),
    # MAE-ST's: with class token and learned positions.
    "mae_st_b": (86_394_624, 768),
    "mae_st_l": (304_096_256, 1024),
    "mae_st_h": (631_911_680, 1280),
    # reference/maskfeat.md 0 and 1.7; at 352 pixels ours: tables alone are larger.
    "maskfeat_s_16x4": (36_167_520, 768),
    "maskfeat_l_16x4": (217_116_864, 1152),
    "maskfeat_l_40x3_312": (217_286_496, 1152),
    "maskfeat_l_40x3_352": (217_334_592, 1152),
    # reference/umt.md A6, less a head of 400: without positions and with patches of one frame.
    "umt_b": (85_637_376, 768),
    "umt_l": (303_074_304, 1024),
}
CLASSES = {"k400": 400, "k600": 600, "k700": 700, "k710": 710, "ssv2": 174}
CLASSES |= {"mit": 339}
CLASSES |= {"ucf101": 101, "hmdb51": 51}


# Long to trace; the small multiscale network stands for them by default.
LARGE = "maskfeat_l_"


def _but_for_large(names):
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(name, marks=marks[name.startswith(LARGE)]) for name in names]


@pytest.mark.parametrize("name", _but_for_large(FINETUNING))
def test_classifier_traces_to_the_published_size(name):
    config = assemble.with_classes(load(name))
    config_lib.validate(config)
    parts = name.replace("_vit", "_").split("_")
    lengths = {"mae": 3, "maskfeat": len(parts) - 2, "umt": 2}
    size = "_".join(parts[: lengths[parts[0]]]) if parts[0] in lengths else parts[1]
    trunk, width = TRUNKS[size]
    classes = CLASSES[parts[-2] if parts[-2] in CLASSES else parts[-3]]
    shapes = jax.eval_shape(systems.build(config).init, jax.random.key(0))
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert found == trunk + classes * (width + 1)


@pytest.mark.parametrize("name", _but_for_large(PRETRAINING))
def test_config_is_valid_and_traces_to_the_published_size(name):
    config = load(name)
    config_lib.validate(config)
    shapes = jax.eval_shape(systems.build(config).init, jax.random.key(0))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    expected = next((n for prefix, n in PARAMETERS.items() if name.startswith(prefix)), None)
    if name == "demo":
        assert 5e5 < found < 5e6
    else:
        assert found == expected
    if config.system == "maskfeat":
        parts = name.split("_")
        key = "_".join(parts[1:3]) if "40x3" in parts else parts[1]
        assert config_lib.mask_cells(config) == CELLS[key]
        return
    counts = config_lib.token_counts(config)
    if name in SMALL_SETS:
        assert (counts.visible, counts.targets) == (392, 1176)
    elif name != "demo":
        key = name if name in TOKENS else name.split("_")[0]
        assert (counts.visible, counts.targets) == TOKENS[key]


def _distinct():
    """All configs; those that compute what an earlier one does are marked slow."""
    seen = set()
    for path in CONFIGS:
        config = load(path.stem)
        program = config.system, config.model.to_json(), config.data.resize
        program += (config.masking.to_json(),) if "masking" in config else ()
        # The classifier stands for the network of the small one too.
        slow = program in seen or path.stem.startswith((LARGE, "maskfeat_s_16x4_k400"))
        slow = slow and path.stem != "maskfeat_s_16x4_k400_ft"
        yield pytest.param(path.stem, marks=[pytest.mark.slow] if slow else [])
        seen.add(program)


@pytest.mark.parametrize("name", list(_distinct()))
def test_full_size_loss_and_gradient_trace(name):
    config = assemble.with_classes(load(name))
    config.train.batch_videos = 4 // config.data.repeats
    system = systems.build(config)
    batch = {
        field: jax.ShapeDtypeStruct((4 // spec.clips, *spec.shape), spec.dtype)
        for field, spec in system.batch_spec.items()
    }
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))

    def loss(params, frozen, batch, keys):
        batch = system.targets(frozen, batch, keys)
        return system.loss(params, batch, keys, True)[0].total

    params = jax.eval_shape(system.init, jax.random.key(0))
    init_frozen = system.init_frozen or (lambda key: None)
    frozen = jax.eval_shape(init_frozen, jax.random.key(0))
    value, grads = jax.eval_shape(jax.value_and_grad(loss), params, frozen, batch, keys)
    assert value.shape == () and value.dtype == "float32"
    assert jax.tree.map(lambda x: (x.shape, x.dtype), grads) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )


@pytest.mark.parametrize("name", [p.stem for p in CONFIGS])
def test_smoke_shrinks_width_depth_batch_and_steps_and_nothing_else(name):
    full, small = load(name), load(name, "smoke")
    config_lib.validate(small)
    changed = {
        path
        for path, value in _leaves(full.to_dict()).items()
        if value != _leaves(small.to_dict())[path]
    }
    assert changed <= {
        "model/encoder/width",
        "model/encoder/depth",
        "model/encoder/depths",
        "data/size",
        "model/decoder/width",
        "model/decoder/depth",
        "teacher/encoder/width",
        "teacher/encoder/depth",
        "align/layers",
        "train/batch_videos",
        "train/steps",
        "train/log_every",
        "train/checkpoint_every",
        "train/picture_every",
        "optim/lr_per_videos",
    }
    # The learning rate that the recipe reaches does not change with the batch.
    plans = [config_lib.plan(c, 10_000) for c in (full, small)]
    assert math.isclose(plans[0].peak_lr, plans[1].peak_lr, rel_tol=1e-12)


def _leaves(tree, prefix=""):
    found = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        found |= _leaves(value, path + "/") if isinstance(value, dict) else {path: value}
    return found


@pytest.mark.parametrize(
    ("name", "videos", "steps", "warmup", "peak"),
    [
        # 240436 // 2048 = 117 steps an epoch; 1601 epochs; 40 of warm-up; 1.5e-4 * 2048 / 256.
        ("videomae_b_k400", 240_436, 117 * 1601, 117 * 40, 1.2e-3),
        # reference/videomae_v2.md 4.2: "base lr -> actual".
        ("v2_vitb", 1_348_000, 1316 * 200, 1316 * 20, 4e-3),
        ("v2_vitl", 1_348_000, 877 * 300, 877 * 30, 6e-3),
        ("v2_vith", 1_348_000, 658 * 300, 658 * 30, 8e-3),
        ("v2_vitg", 1_348_000, 658 * 300, 658 * 30, 4.8e-3),
        # umt.md A5.
        ("umt_b_k710", 658_340, 321 * 201, 321 * 40, 1.2e-3),
        ("videomae_b_ucf101", 9_537, 49 * 3201, 49 * 40, 2.25e-4),
        # reference/videomae.md 5.4: 5e-4 * 384 / 256; the two copies of a video are not counted.
        ("videomae_b_k400_ft", 240_436, 626 * 75, 626 * 5, 7.5e-4),
        ("v2_vitg_k710_ft", 658_340, 6857 * 35, 6857 * 5, 3.75e-4),
        # reference/umt.md A6, whose rates are of clips: of two of each video but for MiT.
        ("umt_b_k710_ft", 658_340, 2571 * 35, 2571 * 2, 4e-4),
        ("umt_l_k710_ft", 658_340, 2571 * 20, 2571 * 2, 2e-4),
        ("umt_b_k400_ft", 240_436, 939 * 5, 939, 4e-5),
        ("umt_l_k400_ft", 240_436, 939 * 5, 939, 2e-5),
        ("umt_l_k400_16f_ft", 240_436, 1878 * 5, 1878, 1e-5),
        ("umt_b_mit_ft", 51_200, 100 * 40, 100 * 5, 2e-4),
        ("umt_b_mit_384_ft", 25_600, 100 * 4, 100, 1e-5),
        ("umt_l_mit_384_ft", 12_800, 100 * 4, 100, 5e-6),
        ("umt_b_ssv2_ft", 168_913, 659 * 30, 659 * 5, 4e-4),
        ("umt_l_ssv2_ft", 168_913, 659 * 14, 659 * 4, 8e-4),
    ],
)
def test_plan_follows_the_released_rules(name, videos, steps, warmup, peak):
    plan = config_lib.plan(load(name), videos)
    assert (plan.total_steps, plan.warmup_steps) == (steps, warmup)
    assert math.isclose(plan.peak_lr, peak, rel_tol=1e-12)


def test_misspelt_field_names_the_right_one():
    config = config_lib.pretrain_defaults()
    with pytest.raises(AttributeError, match='Did you mean "base_lr"'):
        config.optim.base_lrr = 1.0


def test_all_problems_are_reported_with_field_value_and_good_values():
    config = config_lib.pretrain_defaults()
    config.data.on_error = "ignore"
    config.model.encoder.heads = 7
    config.optim.accumulate = 3
    config.data.size = (225, 224)
    with pytest.raises(config_lib.ConfigError) as caught:
        config_lib.validate(config)
    message = str(caught.value)
    assert "config.data.on_error='ignore': choose one of 'skip', 'raise'" in message
    assert "width=768 is not a multiple of its 7 heads" in message
    assert "accumulate=3 does not divide the 1024 clips" in message
    assert "height=225 is not a positive multiple of 16" in message


def test_videos_are_shared_evenly_where_their_clips_are_cut_on_the_device():
    config = config_lib.pretrain_defaults()
    config.train.batch_videos, config.data.repeats = 6, 4
    config_lib.check_devices(config, 8)  # 24 clips
    config.data.resize = "device"
    with pytest.raises(config_lib.ConfigError, match=r"6 videos a step.*multiple of 8, e\.g\. 8"):
        config_lib.check_devices(config, 8)
    config.optim.accumulate = 4
    with pytest.raises(config_lib.ConfigError, match=r"accumulate=4 does not divide the 6 videos"):
        config_lib.validate(config)


def test_positions_that_a_system_cannot_have_are_refused():
    config = config_lib.finetune_defaults()
    config.model.positions = "frozen"
    with pytest.raises(
        config_lib.ConfigError, match=r"frozen.*config\.init_from must name weights"
    ):
        config_lib.validate(config)
    config.init_from, config.model.sincos_grid = "weights", (8, 14)
    with pytest.raises(config_lib.ConfigError, match=r"sincos_grid=\(8, 14\): must be \(frames"):
        config_lib.validate(config)
    config.model.sincos_grid = (8, 14, 14)
    config_lib.validate(config)
    config = config_lib.pretrain_defaults()
    config.model.sincos_grid = (8, 14, 14)
    with pytest.raises(config_lib.ConfigError, match="interpolated, the system is 'videomae'"):
        config_lib.validate(config)


def test_fewer_videos_than_a_batch_is_an_error_with_the_number_to_set():
    with pytest.raises(config_lib.ConfigError, match="set it to 100 or less"):
        config_lib.plan(config_lib.pretrain_defaults(), 100)


def test_saved_config_comes_back_equal_and_strangers_are_refused():
    config = load("v2_vitg", "smoke")
    values = json.loads(config_lib.to_json(config))
    assert config_lib.from_mapping(values).to_dict() == config.to_dict()
    values["optim"]["momentum"] = 0.9
    values["optim"]["nesterov"] = True
    with pytest.raises(config_lib.ConfigError, match=r"momentum is unknown.*nesterov is unknown"):
        config_lib.from_mapping(values)


def test_saved_config_of_another_architecture_comes_back_with_its_fields():
    config = config_lib.finetune_defaults("mvit")
    assert config.model.encoder.depths == (1, 2, 11, 2) and "layer_scale" not in config.model
    values = json.loads(config_lib.to_json(config))
    assert config_lib.from_mapping(values).to_dict() == config.to_dict()
    values["system"] = "videomae"
    with pytest.raises(config_lib.ConfigError, match="architecture='mvit': the system 'videomae'"):
        config_lib.from_mapping(values)


def test_sizes_of_a_multiscale_network_that_do_not_go_together_are_refused():
    config = config_lib.finetune_defaults("mvit")
    config_lib.validate(config)
    config.model.encoder.depths = (1, 2, 3)
    with pytest.raises(config_lib.ConfigError, match="strides="):
        config_lib.validate(config)
    config.model.encoder.depths = (1, 2, 3, 4)
    with pytest.raises(config_lib.ConfigError, match=r"depth=16 is not the sum.*: 10"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher.size": (196, 196)}, "196 is not a positive multiple of 16"),
        ({"teacher.size": (240, 224)}, r"\(8, 15, 14\).*the student on \(8, 14, 14\)"),
        ({"teacher.tubelet": (2, 16, 16)}, r"\(4, 14, 14\).*the student on \(8, 14, 14\)"),
        ({"align.layers": 7, "align.interval": 2}, "begin at layer 0.*config.model.encoder has"),
        ({"align.layers": 7, "teacher.interval": 3}, "begin at layer -6, but config.teacher.enc"),
        ({"teacher.attention_layer": 13}, "attention_layer=13: the teacher has layers 1 to 12"),
        ({"align.normalize": "none"}, "'l2' compares unit vectors"),
        ({"masking.encoder": ("attention", 0.001)}, "hides 0 of 196 patches in each frame"),
        ({"masking.encoder": ("attentive", 0.8)}, "agnostic, block, attention"),
    ],
)
def test_student_and_teacher_that_cannot_be_aligned_are_refused(change, words):
    config = config_lib.umt_defaults().unlock()
    config_lib.validate(config)
    config.update_from_flattened_dict(change)
    with pytest.raises(config_lib.ConfigError, match=words):
        config_lib.validate(config)


def test_layers_are_aligned_from_the_last_one_down():
    config = config_lib.umt_defaults().unlock()
    assert config_lib.aligned_layers(config, "model") == (7, 8, 9, 10, 11, 12)
    config.align.update(layers=3, interval=4)
    config.teacher.interval = 2
    assert config_lib.aligned_layers(config, "model") == (4, 8, 12)
    assert config_lib.aligned_layers(config, "teacher") == (8, 10, 12)


def test_attention_guides_masks_only_where_there_is_a_teacher():
    config = config_lib.pretrain_defaults()
    config.masking.encoder = ("attention", 0.8)
    with pytest.raises(config_lib.ConfigError, match="'videomae' has no teacher whose attention"):
        config_lib.validate(config)


def test_field_that_a_saved_config_does_not_have_gets_its_default_and_is_named(caplog):
    values = json.loads(config_lib.to_json(load("demo")))
    del values["train"]["keep_last"], values["mesh"]
    with caplog.at_level("INFO", logger="vmae_jax"):
        config = config_lib.from_mapping(values)
    assert config.to_dict() == load("demo").to_dict()
    assert "config.train.keep_last is newer than the saved config; it is 3" in caplog.text
    assert "config.mesh is newer" in caplog.text


def test_unknown_mode_is_refused():
    with pytest.raises(config_lib.ConfigError, match="smok"):
        load("demo", "smok")


def test_data_fields_are_the_pipelines_options_and_share_its_defaults():
    fields = {f.name: f.default for f in dataclasses.fields(PipelineOptions)}
    assert fields.pop("channels") == config_lib.pretrain_defaults().model.channels
    data = config_lib.pretrain_defaults().data.to_dict()
    ours = {k: v for k, v in data.items() if k not in assemble.NOT_THE_PIPELINES}
    assert fields.keys() == ours.keys()
    differ = {name for name, value in ours.items() if fields[name] != value}
    # A run decides these otherwise than a pipeline opened by hand.
    assert differ == {"manifest", "on_error", "workers", "clip_timeout_s"}
