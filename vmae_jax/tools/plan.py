r"""Says what a run will need before it is started: compiles its train step for absent devices.

    python -m vmae_jax.tools.plan --config=configs/v2_vitg.py --topology=v5e:8x8 --clips_per_chip=32
    python -m vmae_jax.tools.plan --config=configs/v2_vitg.py --topology=v5p:4x4x4 --search

Topologies: v4, v5e, v5p, v6e and tpu7x slices as v5e:8x8, several slices as v5e:16x16:2, fake CPU
devices as cpu:8. GPUs (gpu:h100:8) are planned without the compiler: memory of the program and
collectives are then unknown. Exit code: 0; 1 if something cannot be planned; 2 if it does not fit.

Parameters, FLOPs, memory and collectives are facts of the model and of the compiled program. Times
are estimates from datasheet figures and one assumption, `--efficiency`.
"""

import dataclasses
import itertools
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from vmae_jax import assemble, systems
from vmae_jax import config as config_lib
from vmae_jax.errors import UserError
from vmae_jax.planning import ahead, estimate
from vmae_jax.planning.ahead import PlanError, Topology
from vmae_jax.systems.base import System
from vmae_jax.train.sharding import fsdp_degree, make_mesh

_GIB = 2**30
_COSTLIEST = 40  # instructions listed in the JSON
# jax.named_scope of the step's parts.
_SCOPES = ("teacher", "targets", "encoder", "decoder", "update")


def plan(
    config: ConfigDict, topology: Topology, *, clips_per_chip: int, efficiency: float
) -> dict[str, Any]:
    """The plan of one recipe on one topology, as plain numbers and words.

    Args:
      config: validated recipe.
      topology: where it is to run.
      clips_per_chip: see the flag; 0: as the recipe says.
      efficiency: see the flag.

    Raises:
      ConfigError: a batch that the devices cannot share.
      PlanError: the compiler knows no such devices, or refuses the step for other reasons than
        memory.
    """
    config = _with_micro_batch(config, topology, clips_per_chip)
    config_lib.check_devices(config, topology.num_devices)
    system = systems.build(config, topology.chip)
    facts = _facts(config, system, topology)
    if topology.chip.platform == "gpu":
        # Weights, two moments: 12 bytes a parameter; 2 of what is never trained.
        state_bytes = 12 * facts["parameters"] // facts["mesh"]["fsdp"]
        frozen_bytes = 2 * facts["frozen_parameters"] // facts["mesh"]["fsdp"]
        step, note = None, "activations: run tools/bench step on one GPU, it reports the peak"
        facts["memory"] = _memory(topology, None, state_bytes, frozen_bytes) | {"note": note}
    else:
        mesh = make_mesh(config.mesh.fsdp, ahead.devices_of(topology))
        run = assemble.make_run(config, config_lib.plan(config, config.train.batch_videos))
        step = ahead.compile_step(system, run, mesh, clips=facts["clips_per_step"])
        state_bytes = step.state_bytes
        facts["memory"] = _memory(topology, step.peak_bytes, state_bytes, step.frozen_bytes)
        facts["memory"]["fits"] = step.program is not None
        facts["compile_s"] = step.compile_s
        if step.program is None:
            facts["advice"] = estimate.advice(
                remat=facts["remat"],
                clips_per_chip=facts["clips_per_chip"],
                fsdp=facts["mesh"]["fsdp"],
                chips_per_slice=topology.num_devices // topology.slices,
            )
            return facts
        facts["program"] = _program(step)
    if topology.chip.peak_tflops is not None:
        facts |= _estimates(config, system, topology, facts, step, state_bytes, efficiency)
    return facts


def _with_micro_batch(config: ConfigDict, topology: Topology, clips_per_chip: int) -> ConfigDict:
    """The recipe with its batch summed from micro-batches of `clips_per_chip` on each device."""
    if not clips_per_chip:
        return config
    config = ConfigDict(config.to_dict())
    clips, repeats = config.train.batch_videos * config.data.repeats, config.data.repeats
    micro = clips_per_chip * topology.num_devices
    if micro % repeats:
        raise PlanError(
            f"--clips_per_chip={clips_per_chip} on {topology.num_devices} devices is no multiple "
            f"of the {repeats} clips taken of each video (config.data.repeats)"
        )
    whole = clips % micro == 0
    config.optim.accumulate = clips // micro if whole else 1
    config.train.batch_videos = config.train.batch_videos if whole else micro // repeats
    return config


def _facts(config: ConfigDict, system: System, topology: Topology) -> dict[str, Any]:
    """What follows from recipe and model alone."""
    devices = topology.num_devices
    clips = config.train.batch_videos * config.data.repeats
    fsdp = fsdp_degree(config.mesh.fsdp, devices, topology.slices)
    macs = estimate.macs_by_group(system.macs)
    stacks = {
        name: part.remat
        for name, part in config.model.items()
        if isinstance(part, ConfigDict) and "remat" in part
    }
    return {
        "topology": topology.name,
        "chip": topology.chip.name,
        "devices": devices,
        "mesh": {"data": devices // fsdp, "fsdp": fsdp},
        "remat": stacks,
        "choices": dict(system.choices),
        "clips_per_step": clips,
        "micro_batches": config.optim.accumulate,
        "clips_per_chip": clips // devices // config.optim.accumulate,
        "parameters": _count(system.init),
        "frozen_parameters": _count(system.init_frozen) if system.init_frozen else 0,
        "gmac_per_clip": {part: count / 1e9 for part, count in macs.items()},
        "train_gflop_per_clip": system.train_flops / 1e9,
        "teacher_gflop_per_clip": estimate.teacher_flops(system.macs) / 1e9,
        "train_tflop_per_step": system.train_flops * clips / 1e12,
    }


def _count(init: Callable[[jax.Array], Any]) -> int:
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _memory(
    topology: Topology, peak_bytes: int | None, state_bytes: int, frozen_bytes: int
) -> dict[str, Any]:
    return {
        "peak_gib": None if peak_bytes is None else peak_bytes / _GIB,
        "state_gib": state_bytes / _GIB,
        "frozen_gib": frozen_bytes / _GIB,
        "chip_gib": topology.chip.memory_gib,
    }


def _program(step: ahead.Step) -> dict[str, Any]:
    program = step.program
    return {
        "loops": sorted(program.loops.values()),
        "windowed_loops": program.windowed_loops,
        "float64": "f64" in program.dtypes,
        "state_arrays": step.state_arrays,
        "donated": program.donated,
        "estimated_cycles": program.cycles_by_scope(_SCOPES),
        "costliest": [
            {
                "cycles": cycles,
                "opcode": instruction.opcode,
                "shape": instruction.shape,
                "source": instruction.source,
            }
            for instruction, cycles in program.costliest(_COSTLIEST)
        ],
        "collectives": [dataclasses.asdict(c) for c in program.collectives],
    }


def _estimates(
    config: ConfigDict,
    system: System,
    topology: Topology,
    facts: dict[str, Any],
    step: ahead.Step | None,
    state_bytes: int,
    efficiency: float,
) -> dict[str, Any]:
    """Time of a step and what the hosts must feed, with what was assumed."""
    chip, devices, clips = topology.chip, topology.num_devices, facts["clips_per_step"]
    recomputed = 2 * estimate.recomputed_macs(system.macs, facts["remat"])
    flops = system.train_flops + recomputed
    time = estimate.step_time(
        chip,
        flops=flops * clips / devices,
        collectives=step.program.collectives if step else (),
        state_bytes=state_bytes,
        grad_bytes=2 * facts["parameters"],
        slices=topology.slices,
        chips_per_slice=devices // topology.slices,
        efficiency=efficiency,
    )
    rate, hosts = clips / time.total, chip.hosts(devices)
    assumptions = [
        f"arithmetic at {efficiency:.0%} of {chip.peak_tflops:g} TFLOP/s",
        f"transfers at {chip.link_gbps:g} GB/s, beside the arithmetic" if step else "no transfers",
        f"state read and written at {chip.memory_gbps:g} GB/s",
    ]
    if topology.slices > 1:
        assumptions.append(f"{estimate.SLICE_GBPS:g} GB/s a chip between slices")
    return {
        "estimate": {
            "step_s": time.total,
            **{f"{part}_s": seconds for part, seconds in dataclasses.asdict(time).items()},
            "teacher_s": time.compute * estimate.teacher_flops(system.macs) / flops,
            "clips_per_s_per_chip": rate / devices,
            "mfu": rate * system.train_flops / (devices * chip.peak_tflops * 1e12),
            "assumptions": assumptions,
        },
        "feed": {
            "hosts": hosts,
            "clips_per_s_per_host": rate / hosts,
            "cores_per_host": estimate.cores_to_feed(
                rate / hosts,
                repeats=config_lib.clips_of_a_window(config),
                device_crop=config.data.resize == "device",
                randaugment=bool(config.data.randaugment),
            ),
        },
    }


def search(
    config: ConfigDict,
    topology: Topology,
    *,
    clips_per_chip: Sequence[int],
    remat: Sequence[str],
    fsdp: Sequence[int],
    efficiency: float,
) -> list[dict[str, Any]]:
    """Plans of every combination that fits, the fastest first.

    A batch is not tried where a smaller one with the same policy and mesh did not fit.
    """
    found = []
    for policy, degree in itertools.product(remat, fsdp):
        for clips in sorted(clips_per_chip):
            tried = ConfigDict(config.to_dict())
            tried.model.encoder.remat, tried.mesh.fsdp = policy, degree
            config_lib.validate(tried)
            facts = plan(tried, topology, clips_per_chip=clips, efficiency=efficiency)
            print(_summary(facts), flush=True)
            if not facts["memory"].get("fits", True):
                break
            found.append(facts)
    return sorted(found, key=_rate, reverse=True)


def _rate(facts: dict[str, Any]) -> float:
    return facts["estimate"]["clips_per_s_per_chip"] if "estimate" in facts else 0.0


def _summary(facts: dict[str, Any]) -> str:
    """One line of a search."""
    memory = facts["memory"]
    peak = "?" if memory["peak_gib"] is None else f"{memory['peak_gib']:.1f}"
    words = (
        f"clips/chip {facts['clips_per_chip']:4d} x {facts['micro_batches']:<3d} "
        f"remat {facts['remat']['encoder']:5s} fsdp {facts['mesh']['fsdp']:<4d} peak {peak} GiB"
    )
    if not memory.get("fits", True):
        return words + "  does not fit"
    return words + f"  about {_rate(facts):.1f} clips/s/chip" * ("estimate" in facts)


def table(facts: dict[str, Any]) -> str:
    """A plan for people."""
    mesh, memory = facts["mesh"], facts["memory"]
    rows = [
        (
            "devices",
            f"{facts['devices']} x {facts['chip']}, data {mesh['data']} x fsdp {mesh['fsdp']}",
        ),
        (
            "step",
            f"{facts['clips_per_step']} clips = {facts['devices']} devices x "
            f"{facts['clips_per_chip']} clips x {facts['micro_batches']} micro-batches",
        ),
        ("choices", ", ".join(f"{k} {v}" for k, v in facts["choices"].items())),
        ("remat", ", ".join(f"{k} {v}" for k, v in facts["remat"].items())),
        ("parameters", _parameters(facts)),
        (
            "forward",
            ", ".join(f"{k} {v:.2f}" for k, v in facts["gmac_per_clip"].items()) + " GMAC per clip",
        ),
        (
            "training",
            f"{facts['train_gflop_per_clip']:.0f} GFLOP per clip"
            f"{_teachers_part(facts['teacher_gflop_per_clip'])}, "
            f"{facts['train_tflop_per_step']:.0f} TFLOP per step",
        ),
        *_memory_rows(memory),
        *_program_rows(facts.get("program")),
        *_estimate_rows(facts),
        *(("advice", words) for words in facts.get("advice", ())),
    ]
    return "\n".join(f"{name:<13}{words}" for name, words in rows)


def _parameters(facts: dict[str, Any]) -> str:
    trained, frozen = facts["parameters"] / 1e6, facts["frozen_parameters"] / 1e6
    return f"{trained:.1f} M" + (f", and {frozen:.1f} M of a teacher" if frozen else "")


def _teachers_part(teacher: float, digits: int = 0) -> str:
    return f", {teacher:.{digits}f} of it the teacher's" if teacher else ""


def _memory_rows(memory: dict[str, Any]) -> list[tuple[str, str]]:
    of = f" of {memory['chip_gib']:g}" if memory["chip_gib"] else ""
    frozen = f", teacher {memory['frozen_gib']:.3g} GiB" if memory["frozen_gib"] else ""
    if memory["peak_gib"] is None:
        return [("memory", f"state {memory['state_gib']:.2f}{of} GiB{frozen}; {memory['note']}")]
    verdict = "" if memory["fits"] else "  DOES NOT FIT"
    words = f"peak {memory['peak_gib']:.3g}{of} GiB per device, state {memory['state_gib']:.3g} GiB"
    return [("memory", words + frozen + verdict)]


def _program_rows(program: dict[str, Any] | None) -> list[tuple[str, str]]:
    if program is None:
        return []
    cycles, total = program["estimated_cycles"], sum(program["estimated_cycles"].values())
    shares = ", ".join(f"{scope} {count / total:.0%}" for scope, count in cycles.items() if total)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for c in program["collectives"]:
        groups.setdefault((c["times"], c["kind"], c["dtype"], c["group"]), []).append(c["bytes"])
    rows = [
        (
            "program",
            f"loops of {program['loops']}, {program['donated']} of "
            f"{program['state_arrays']} state arrays donated, "
            f"{len(program['windowed_loops'])} windowed loops",
        ),
    ]
    if total:
        rows.append(("cycles", f"{total / 1e6:.0f} M by the compiler's model: {shares}"))
    for (times, kind, dtype, group), sizes in sorted(groups.items()):
        words = f"{len(sizes)} x {kind} {dtype} among {group}, {sum(sizes) / 2**20:.2f} MiB"
        rows.append(("transfers", words + (f", in each of {times} rounds" if times > 1 else "")))
    return rows


def _estimate_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "estimate" not in facts:
        return []
    time, feed = facts["estimate"], facts["feed"]
    cores = ", ".join(f"{name} {cores:.0f}" for name, cores in feed["cores_per_host"].items())
    return [
        (
            "estimate",
            f"{time['step_s']:.3f} s a step (arithmetic {time['compute_s']:.3f}"
            f"{_teachers_part(time['teacher_s'], 3)}, transfers "
            f"{time['links_s'] + time['slices_s']:.3f}, update {time['optimizer_s']:.3f}), "
            f"{time['clips_per_s_per_chip']:.1f} clips/s/chip, MFU {time['mfu']:.0%}",
        ),
        *(("assumed", words) for words in time["assumptions"]),
        (
            "feed",
            f"{feed['clips_per_s_per_host']:.0f} clips/s on each of {feed['hosts']} hosts; "
            f"cores per host: {cores}",
        ),
    ]


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Recipe to plan.", lock_config=True)
    flags.DEFINE_string("topology", None, "Devices, e.g. v5e:8x8 or v6e:16x16:2.")
    flags.DEFINE_integer(
        "clips_per_chip",
        0,
        "Clips in flight per chip. The recipe's batch is summed from micro-batches of that size; "
        "where it is not a multiple, the batch becomes one micro-batch. 0: as the recipe says.",
    )
    flags.DEFINE_float(
        "efficiency", 0.5, "Assumed share of the chip's peak that the arithmetic reaches."
    )
    flags.DEFINE_string(
        "json", "", "Also write the plan to this file, with the costliest instructions."
    )
    flags.DEFINE_bool("search", False, "Try the lists below and rank what fits.")
    flags.DEFINE_list("try_clips", ["16", "32", "64"], "Clips per chip to try.")
    flags.DEFINE_list("try_remat", ["named", "full"], "Policies of the encoder to try.")
    flags.DEFINE_list("try_fsdp", [], "Values of mesh.fsdp to try; default: the recipe's.")
    flags.mark_flags_as_required(["config", "topology"])


def _plans(asked: flags.FlagValues) -> list[dict[str, Any]]:
    """Plans and prints what the command line asks for."""
    family, _, count = asked.topology.partition(":")
    ahead.prepare(int(count) if family == "cpu" and count.isdigit() else 1)
    topology = ahead.parse_topology(asked.topology)
    config_lib.validate(asked.config)
    config = assemble.with_classes(asked.config)
    if not asked.search:
        facts = plan(
            config,
            topology,
            clips_per_chip=asked.clips_per_chip,
            efficiency=asked.efficiency,
        )
        print(table(facts))
        return [facts]
    found = search(
        config,
        topology,
        clips_per_chip=[int(clips) for clips in asked.try_clips],
        remat=asked.try_remat,
        fsdp=[int(degree) for degree in asked.try_fsdp] or [config.mesh.fsdp],
        efficiency=asked.efficiency,
    )
    if not found:
        raise PlanError("nothing that was tried fits; see --try_clips, --try_remat, --try_fsdp")
    print("\nThe fastest first, by the estimate:", *map(_summary, found), sep="\n")
    return found


def _main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; fields are set as --config.a.b=value")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("jax").setLevel(logging.ERROR)
    try:
        plans = _plans(flags.FLAGS)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if flags.FLAGS.json:
        text = json.dumps(plans if flags.FLAGS.search else plans[0], indent=2)
        pathlib.Path(flags.FLAGS.json).write_text(text + "\n")
    return 0 if plans[0]["memory"].get("fits", True) else 2


def main() -> None:
    """Entry point of the command line."""
    _define_flags()
    app.run(_main)


if __name__ == "__main__":
    main()
