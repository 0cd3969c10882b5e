import json
import subprocess
import sys

import jax
import pytest

from vmae_jax import chips
from vmae_jax import config as config_lib
from vmae_jax.planning import ahead
from vmae_jax.tools import plan


@pytest.fixture
def config():
    config = config_lib.pretrain_defaults()
    for stack, width in (("encoder", 32), ("decoder", 16)):
        config.model[stack].update(width=width, depth=2, heads=2)
    config.model.tubelet = (2, 4, 4)
    config.data.update(frames=8, size=(16, 16), repeats=2)
    config.train.batch_videos = 16
    config.mesh.fsdp = 4
    return config


def _plan(config, topology, **arguments):
    arguments = {"clips_per_chip": 0, "efficiency": 0.5} | arguments
    return plan.plan(config, ahead.parse_topology(topology), **arguments)


def test_the_plan_of_a_compiled_step(config):
    if jax.device_count() < 8:
        pytest.skip("needs 8 (fake) devices")
    facts = _plan(config, "cpu:8", clips_per_chip=2)
    assert facts["mesh"] == {"data": 2, "fsdp": 4}
    assert facts["clips_per_step"] == 32 and facts["micro_batches"] == 2
    assert facts["program"]["donated"] == facts["program"]["state_arrays"] > 50
    assert not facts["program"]["float64"] and not facts["program"]["windowed_loops"]
    assert 2 in facts["program"]["loops"]  # the two blocks of a stack
    gathers = [c for c in facts["program"]["collectives"] if c["kind"] == "all-gather"]
    assert max(gather["group"] for gather in gathers) == 4
    # Matrices by fours, everything else whole: more than a quarter of 12 bytes a parameter.
    assert 3 * facts["parameters"] < facts["memory"]["state_gib"] * 2**30 < 12 * facts["parameters"]
    assert facts["memory"]["peak_gib"] > facts["memory"]["state_gib"]
    words = plan.table(facts)
    assert "data 2 x fsdp 4" in words and "all-gather" in words and "32 clips" in words
    json.dumps(facts)


def test_a_batch_that_is_no_multiple_becomes_one_micro_batch(config):
    facts = _plan(config, "gpu:h100:8", clips_per_chip=6)
    assert (facts["clips_per_step"], facts["micro_batches"]) == (48, 1)


def test_gpus_are_planned_without_their_program(config):
    facts = _plan(config, "gpu:h100:8")
    assert "program" not in facts and facts["memory"]["peak_gib"] is None
    assert facts["choices"]["encoder attention"] == "cudnn"
    estimate = facts["estimate"]
    flops = facts["train_gflop_per_clip"] * 1e9 * 32 / 8
    assert estimate["compute_s"] == pytest.approx(flops / (989e12 / 2))
    assert facts["feed"]["hosts"] == 1
    assert "tools/bench step" in plan.table(facts)


@pytest.mark.parametrize("system", ["distill", "umt"])
def test_teacher_and_student_are_planned_apart(system):
    config = config_lib.smoke(config_lib.DEFAULTS[system]())
    config.model.update({"num_classes": 5} if system == "distill" else {})
    facts = _plan(config, "gpu:h100:2")
    teacher = facts["teacher_gflop_per_clip"]
    assert teacher == pytest.approx(2 * facts["gmac_per_clip"]["teacher"])
    share = teacher / facts["train_gflop_per_clip"]
    estimate = facts["estimate"]
    assert 0 < share < 1 and estimate["teacher_s"] == pytest.approx(share * estimate["compute_s"])
    assert facts["memory"]["frozen_gib"] * 2**30 == 2 * facts["frozen_parameters"] > 0
    words = plan.table(facts)
    assert "M of a teacher" in words and "teacher" in words.split("memory")[1]


def test_a_batch_that_does_not_share_is_an_error(config):
    with pytest.raises(config_lib.ConfigError, match="batch_videos"):
        _plan(config, "gpu:h100:5")
    with pytest.raises(ahead.PlanError, match="clips taken of each video"):
        _plan(config, "gpu:h100:5", clips_per_chip=1)


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:two", "gpu:8", "gpu:v5e:8", "cpu:0", ""])
def test_unknown_topologies_are_named(name):
    with pytest.raises(ahead.PlanError, match="known chips: v6e"):
        ahead.parse_topology(name)


def test_the_search_stops_at_a_batch_that_does_not_fit(config, monkeypatch, capsys):
    def pretend(config, topology, *, clips_per_chip, efficiency):
        fits = clips_per_chip * (1 if config.model.encoder.remat == "full" else 2) <= 32
        rate = clips_per_chip if config.model.encoder.remat == "full" else 3 * clips_per_chip
        return {
            "clips_per_chip": clips_per_chip,
            "micro_batches": 1,
            "remat": {"encoder": config.model.encoder.remat},
            "mesh": {"fsdp": config.mesh.fsdp},
            "memory": {"fits": fits, "peak_gib": 1.0},
            "estimate": {"clips_per_s_per_chip": rate},
        }

    monkeypatch.setattr(plan, "plan", pretend)
    topology = ahead.Topology("toy", chips.CHIPS[0], 8)
    found = plan.search(
        config,
        topology,
        clips_per_chip=[64, 16, 32],
        remat=["named", "full"],
        fsdp=[8],
        efficiency=1,
    )
    order = [(facts["remat"]["encoder"], facts["clips_per_chip"]) for facts in found]
    assert order == [("named", 16), ("full", 32), ("full", 16)]
    assert capsys.readouterr().out.count("does not fit") == 2  # named at 32, full at 64


def test_memory_that_is_missing_is_read_off_the_refusal():
    words = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.50G of 15.75G hbm."
    assert ahead.needed_bytes(words) == int(20.5 * 2**30)
    assert ahead.needed_bytes("out of luck") == 0


def test_the_command_says_what_is_wrong_in_one_line():
    command = [sys.executable, "-m", "vmae_jax.tools.plan", "--config=configs/demo.py"]
    ended = subprocess.run(
        [*command, "--topology=v9:2x2"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith("PlanError: topology 'v9:2x2'")
