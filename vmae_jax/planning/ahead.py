"""Compiles the train step for devices that are not there, and says what they would hold and do.

The compiler of TPUs runs on any machine that has libtpu installed (extra `tpu`). Call `prepare`
before anything touches a device.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vmae_jax import chips
from vmae_jax.chips import Chip
from vmae_jax.errors import UserError
from vmae_jax.planning.hlo import Program
from vmae_jax.systems.base import System
from vmae_jax.train import agreement
from vmae_jax.train.frozen import abstract_frozen
from vmae_jax.train.loop import Run
from vmae_jax.train.sharding import batch_sharding, state_shardings
from vmae_jax.train.state import make_init
from vmae_jax.train.step import lower_step, make_train_step

_FORMS = "v5e:8x8, v5p:4x4x4, v6e:16x16:2 (two slices), gpu:h100:8 or cpu:8"
# Devices that stand for a TPU's: no metadata server is asked and no lock on a chip is taken.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


class PlanError(UserError, ValueError):
    """A topology that cannot be planned for, or the compiler's own refusal."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of a machine that need not be there.

    Attributes:
      name: as given.
      chip: of each device.
      num_devices: in all slices together.
      slices: that are joined by the slower network.
      shape: of a slice, as the TPU compiler names it ("8x8"); "" for GPUs and CPUs.
    """

    name: str
    chip: Chip
    num_devices: int
    slices: int = 1
    shape: str = ""


def parse_topology(name: str) -> Topology:
    """Reads "v5e:8x8", "v6e:16x16:2", "gpu:h100:8" or "cpu:8".

    Raises:
      PlanError: another form, or a chip that is not in `chips.CHIPS`.
    """
    family, *parts = name.split(":")
    if family in ("gpu", "cpu") and parts:
        chip = chips.named("cpu" if family == "cpu" else parts[0])
        count = parts[-1]
        if chip and chip.platform == family and count.isdigit() and int(count):
            return Topology(name, chip, int(count))
    elif (chip := chips.named(family)) and chip.platform == "tpu" and len(parts) in (1, 2):
        shape, slices = parts[0], parts[1] if len(parts) == 2 else "1"
        if re.fullmatch(r"\d+(x\d+)+", shape) and slices.isdigit() and int(slices):
            per_slice = len(_tpu_devices(chip, shape, 1))
            return Topology(name, chip, per_slice * int(slices), int(slices), shape)
    known = ", ".join(chip.name for chip in chips.CHIPS)
    raise PlanError(f"topology {name!r}: write it as {_FORMS}; known chips: {known}")


def prepare(num_cpu_devices: int = 1) -> None:
    """Keeps JAX on the CPU, with as many devices as are asked for; call it before anything else."""
    os.environ.update(_LIBTPU_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_cpu_devices)


def devices_of(topology: Topology) -> list[jax.Device]:
    """Devices to compile for.

    Raises:
      PlanError: there is no compiler for them here, or it does not know such a slice.
    """
    if topology.chip.platform == "tpu":
        return _tpu_devices(topology.chip, topology.shape, topology.slices)
    if topology.chip.platform == "cpu":
        return jax.devices("cpu")[: topology.num_devices]
    raise PlanError(
        f"{topology.name}: programs for GPUs are compiled where the GPUs are; what does not need "
        "the program is reported"
    )


def _tpu_devices(chip: Chip, shape: str, slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            "planning for TPUs needs their compiler, libtpu: pip install 'vmae_jax[tpu]', or make "
            "install ACCEL=tpu"
        )
    # v4 is two cores that act as one device.
    extra: dict[str, Any] = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    if set(shape.split("x")) == {"1"}:  # less than the compiler's usual host of 2 x 2
        extra["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.name}:{shape}", num_slices=slices, **extra
        )
    except jax.errors.JaxRuntimeError as error:
        raise PlanError(
            f"the TPU compiler knows no slice {chip.name}:{shape}: {_first_line(error)}"
        ) from error
    return list(found.devices)


@dataclasses.dataclass(frozen=True)
class Step:
    """What the compiler says of one train step. Bytes are of one device.

    Attributes:
      program: the compiled program; None where it does not fit.
      compile_s: time that compiling took here.
      peak_bytes: most memory in use at once; where it does not fit, what would be needed.
      state_bytes: parameters, moments and average.
      frozen_bytes: what is never trained (a teacher).
      state_arrays: arrays of the state.
      refusal: the compiler's words if the program does not fit into memory; else "".
    """

    program: Program | None
    compile_s: float
    peak_bytes: int
    state_bytes: int
    frozen_bytes: int
    state_arrays: int
    refusal: str = ""


def compile_step(system: System, run: Run, mesh: Mesh, *, clips: int) -> Step:
    """Compiles the sharded, donated train step of a run for the devices of a mesh.

    Args:
      system: built for the mesh's chip.
      run: optimizer and options of the step.
      mesh: of devices that may be absent.
      clips: of the global batch.
    """
    with jax.set_mesh(mesh):
        arguments = _arguments(system, run, mesh, clips)
        leaves, frozen = (jax.tree.leaves(tree) for tree in arguments[:2])
        train_step = make_train_step(system, run.tx, run.schedule, run.options)
        lowered = lower_step(agreement.make_agreed_step(train_step), *arguments)
        kept = [sum(map(_bytes_of_shard, tree)) for tree in (leaves, frozen)]
        begin = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise PlanError(f"the compiler refused the step: {_first_line(error)}") from error
            elapsed = time.perf_counter() - begin
            words = str(error)
            return Step(None, elapsed, needed_bytes(words), *kept, len(leaves), words)
        elapsed = time.perf_counter() - begin
    program = Program(compiled.as_text())
    peak = _peak_bytes(compiled.memory_analysis())
    return Step(program, elapsed, peak, *kept, len(leaves))


def _arguments(system: System, run: Run, mesh: Mesh, clips: int) -> tuple[Any, Any, Any, Any]:
    """State, frozen parameters, batch and key as shapes with the layouts of a run."""

    def laid_out(make: Callable[[jax.Array], Any]) -> Any:
        shapes = jax.eval_shape(make, key)
        return _with_shardings(shapes, state_shardings(shapes, mesh))

    key = jax.eval_shape(lambda: jax.random.key(0))
    init = make_init(system.init, run.tx, ema=bool(run.options.ema_decay))
    state = laid_out(init)
    frozen = abstract_frozen(system, mesh)
    sharding = batch_sharding(mesh)
    shapes = {
        name: ((clips // spec.clips, *spec.shape), spec.dtype)
        for name, spec in system.batch_spec.items()
    }
    for name, numbers in (("wishes", agreement.WISHES), ("notes", agreement.NOTES)):
        shapes[name] = (mesh.size, len(numbers)), "int32"
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }
    return state, frozen, batch, _with_shardings(key, NamedSharding(mesh, P()))


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _bytes_of_shard(leaf: jax.ShapeDtypeStruct) -> int:
    size = leaf.dtype.itemsize
    for length in leaf.sharding.shard_shape(leaf.shape):
        size *= length
    return size


def _peak_bytes(memory: Any) -> int:
    peak = getattr(memory, "peak_memory_in_bytes", 0)
    if peak:
        return peak
    # CPUs report no peak: everything at once is an upper bound.
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return total + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def needed_bytes(words: str) -> int:
    """Memory that the compiler's refusal says is needed ("Used 20.10G of 15.75G hbm"), or 0."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", words)
    if found is None:
        return 0
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
