"""The published recipes, compiled by the real TPU compiler for slices that are not here.

Memory budgets are those of the design for ViT-g; for the others, the chip's memory with a tenth to
spare. A program takes one to three minutes of one core; one of them is in the default set.
Of MaskFeat only the pretraining of S was compiled yet (seven minutes), of MAE-ST and UMT that of L,
of the classifiers few.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from vmae_jax.tools.bench import load_config

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install libtpu"
)

ROOT = pathlib.Path(__file__).parents[2]
NAMED = "--config.model.encoder.remat=named"
# (recipe, topology, clips per chip, GiB, other flags); one micro-batch a step.
FLAGSHIP = ("v2_vitg", "v5e:8x8", 32, 12.9, (NAMED,))
PROGRAMS = (
    FLAGSHIP,
    ("v2_vitg", "v5e:16x16", 32, 12.6, (NAMED,)),
    ("v2_vitg", "v5p:4x4x4", 32, 16.0, (NAMED, "--config.mesh.fsdp=8")),
    ("v2_vitg", "v6e:8x8", 32, 14.4, (NAMED, "--config.mesh.fsdp=8")),
    ("v2_vitg", "v5e:2x4", 16, 4.4, ("--config.mesh.fsdp=8",)),
    ("v2_vith", "v5e:4x4", 32, 14.0, ()),
    ("v2_vitl", "v5e:4x4", 32, 14.0, ()),
    ("v2_vitb", "v5e:2x4", 64, 14.0, ()),
    ("videomae_s_k400", "v6e:2x2", 64, 28.0, ()),
    ("videomae_b_k400", "v5e:2x4", 32, 14.0, ()),
    ("videomae_b_ucf101", "v5e:2x2", 32, 14.0, ()),
    ("videomae_l_k400", "v5p:2x2x1", 32, 85.0, ()),
    ("videomae_h_k400", "v5e:4x4", 16, 14.0, ()),
    ("mae_st_b_k400", "v5e:2x4", 32, 14.0, ()),
    ("mae_st_l_k400", "v5e:4x4", 16, 14.0, ()),
    ("mae_st_l_k400_repo", "v5e:4x4", 8, 14.0, ()),
    ("mae_st_h_k400", "v5e:4x4", 16, 14.0, ()),
    ("maskfeat_s_16x4_k400", "v5e:2x4", 8, 14.0, ()),
    ("maskfeat_l_16x4_k400", "v5e:4x4", 4, 14.0, ()),
    ("maskfeat_l_40x3_k400", "v5p:2x2x1", 1, 85.0, ()),
    ("maskfeat_image_b_in1k", "v5e:2x2", 32, 14.0, ()),
    ("maskfeat_image_l_in1k", "v5e:4x4", 32, 14.0, ()),
    ("umt_b_k710", "v5e:2x4", 16, 14.0, ()),
    ("umt_b_k710_l14", "v5e:2x4", 16, 14.0, ()),
    ("umt_l_k710", "v5e:4x4", 16, 14.0, ()),
    ("demo", "v5e:1x1", 16, 14.0, ()),
    ("videomae_s_k400_ft", "v5e:2x2", 16, 14.0, ()),
    ("videomae_b_k400_ft", "v5e:2x4", 8, 14.0, ()),
    ("videomae_l_k400_ft", "v5e:4x4", 4, 14.0, ()),
    ("v2_vith_k400_ft", "v5e:4x4", 4, 14.0, ()),
    ("v2_vitg_k710_ft", "v5e:4x4", 2, 14.0, ()),
    ("v2_vitg_k400_ft", "v5e:4x4", 2, 14.0, ()),
    ("mae_st_b_k400_ft", "v5e:2x4", 8, 14.0, ()),
    ("mae_st_l_k400_ft", "v5e:4x4", 4, 14.0, ()),
    ("mae_st_h_k400_ft", "v5e:4x4", 4, 14.0, ()),
    ("maskfeat_s_16x4_k400_ft", "v5e:2x4", 4, 14.0, ()),
    ("maskfeat_l_16x4_k400_ft", "v5e:4x4", 2, 14.0, ()),
    ("umt_b_k400_ft", "v5e:2x4", 8, 14.0, ()),
    ("umt_l_k400_ft", "v5e:4x4", 4, 14.0, ()),
    ("v2_vitb_k710_distill", "v5e:4x4", 2, 14.0, ()),
    ("v2_vits_k710_distill", "v5e:4x4", 2, 14.0, ()),
)


def _plan(tmp_path, recipe, topology, clips, flags):
    config = load_config(str(ROOT / "configs" / f"{recipe}.py"))
    out = tmp_path / "plan.json"
    # Not the fake devices and shortcuts of the other tests.
    environment = {
        k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    command = [
        *(sys.executable, "-m", "vmae_jax.tools.plan"),
        *(f"--config={ROOT}/configs/{recipe}.py", f"--topology={topology}", f"--json={out}"),
        f"--clips_per_chip={clips}",
        # Less than a micro-batch, which then is the whole batch.
        f"--config.train.batch_videos={config.data.repeats}",
        *flags,
    ]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text())


def _check(facts, *, clips, gib):
    assert facts["clips_per_chip"] == clips and facts["micro_batches"] == 1
    assert facts["memory"]["peak_gib"] < gib
    program = facts["program"]
    assert program["windowed_loops"] == []
    assert not program["float64"]
    assert program["donated"] == program["state_arrays"]
    # Nothing of the targets and masks crosses devices; that there is such a part shows in its cost.
    assert program["estimated_cycles"]["targets"] > 0
    assert not [c for c in program["collectives"] if "targets" in c["source"]]


def _check_gathers(facts, *, depths):
    """Each layer's four matrices are gathered in bfloat16, in the forward and the backward pass."""
    gathers = [c for c in facts["program"]["collectives"] if c["kind"] == "all-gather"]
    assert {gather["dtype"] for gather in gathers} == {"bf16"}
    for depth in depths:
        per_layer = [gather for gather in gathers if gather["times"] == depth]
        assert len(per_layer) == 2 * 4


def test_the_flagship_on_64_chips(tmp_path):
    recipe, topology, clips, gib, flags = FLAGSHIP
    facts = _plan(tmp_path, recipe, topology, clips, flags)
    _check(facts, clips=clips, gib=gib)
    assert facts["mesh"] == {"data": 4, "fsdp": 16}
    _check_gathers(facts, depths=(40, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "topology", "clips", "gib", "flags"),
    [program for program in PROGRAMS if program is not FLAGSHIP],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_published_recipe_compiles_within_its_memory(
    tmp_path, recipe, topology, clips, gib, flags
):
    facts = _plan(tmp_path, recipe, topology, clips, flags)
    _check(facts, clips=clips, gib=gib)
    if recipe == "v2_vitg":
        _check_gathers(facts, depths=(40, 4))


def test_every_recipe_has_a_program_among_these():
    """Recipes that differ in data and schedule only share a program."""

    def shape(recipe):
        config = load_config(str(ROOT / "configs" / f"{recipe}.py"))
        if "masking" not in config:  # classes, rates and whether there is dropout change little
            encoder = config.model.encoder
            size = encoder.width, encoder.depth, config.model.tubelet
            return config.system, size, config.optim.clip_norm > 0
        data = (config.data.frames, config.data.size, config.data.repeats, config.data.flip)
        step = (config.optim.clip_norm > 0, config.optim.ema_decay > 0, config.mesh.fsdp)
        return config.model.to_json(), config.masking.to_json(), data, step

    compiled = {shape(recipe) for recipe, *_ in PROGRAMS}
    missing = [p.stem for p in (ROOT / "configs").glob("*.py") if shape(p.stem) not in compiled]
    assert not missing, f"add {missing} to PROGRAMS"
