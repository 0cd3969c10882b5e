"""From FLOPs, bytes and stated peaks to the time of a step, and what must be fed to it.

Everything here is arithmetic with assumptions that are named beside the result; nothing is timed.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from vmae_jax.chips import Chip
from vmae_jax.planning.hlo import Collective

# Parts of the forward pass as the papers group them; any other part stands for itself.
GROUPS = {
    "patch_embed": "encoder",
    "encoder": "encoder",
    "encoder_to_decoder": "decoder",
    "decoder": "decoder",
    "head": "decoder",
}
# GB/s of the network between slices, per chip: 200 Gbit/s for a host of four.
SLICE_GBPS = 6.25
# ms on one core to read and decode 16 frames of a ten-second video of 454 x 256, by storage format:
# measured, benchmarks/RESULTS.md ("prepared sets", B).
DECODE_MS = {"original mp4": 37.0, "short-GOP mp4": 18.0, "JPEG frames": 17.0}
# ms on one core for one crop of 16 frames resized to 224 x 224 by Pillow: measured, same place.
HOST_CROP_MS = 5.5
# ms on one core for RandAugment of one clip of 16 frames of 454 x 256: measured, same place.
RANDAUGMENT_MS = 32.0
HOST_BUSY = 0.7  # share of the cores' time that may be spent: one slow file must not stall a step


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    Attributes:
      compute: arithmetic, recomputation included, at the assumed share of the peak.
      links: transfers inside a slice, if nothing else were done.
      slices: transfers between slices.
      optimizer: reading and writing the state.
    """

    compute: float
    links: float
    slices: float
    optimizer: float

    @property
    def total(self) -> float:
        """Transfers run beside the arithmetic, whichever is longer; the update comes after."""
        return max(self.compute, self.links + self.slices) + self.optimizer


def macs_by_group(macs: Mapping[str, float]) -> dict[str, float]:
    """Forward multiply-accumulates per clip of the encoder, the decoder and others (a teacher)."""
    groups: dict[str, float] = {}
    for part, count in macs.items():
        group = GROUPS.get(part, part)
        groups[group] = groups.get(group, 0.0) + count
    return groups


def teacher_flops(macs: Mapping[str, float]) -> float:
    """Floating-point operations per clip of what is never trained: its forward pass alone."""
    return 2 * macs.get("teacher", 0.0)


def recomputed_macs(macs: Mapping[str, float], remat: Mapping[str, str]) -> float:
    """Forward work that is done twice per clip: the stacks whose policy keeps block inputs only."""
    return sum(macs[stack] for stack, policy in remat.items() if policy == "full")


def step_time(
    chip: Chip,
    *,
    flops: float,
    collectives: Sequence[Collective],
    state_bytes: int,
    grad_bytes: float,
    slices: int,
    chips_per_slice: int,
    efficiency: float,
) -> StepTime:
    """Time of one step on one chip.

    Args:
      chip: with known peak and bandwidths.
      flops: of one chip in one step, recomputation included.
      collectives: of the program.
      state_bytes: of one chip.
      grad_bytes: of the whole gradient as it travels.
      slices: that share the batch; each pair exchanges the gradient once.
      chips_per_slice: that do so together.
      efficiency: share of the chip's peak that the arithmetic reaches; an assumption.
    """
    between = 2 * grad_bytes * (slices - 1) / slices / chips_per_slice
    return StepTime(
        compute=flops / (chip.peak_tflops * 1e12 * efficiency),
        links=sum(c.traffic for c in collectives) / (chip.link_gbps * 1e9),
        slices=between / (SLICE_GBPS * 1e9),
        optimizer=2 * state_bytes / (chip.memory_gbps * 1e9),
    )


def cores_to_feed(
    clips_per_s: float, *, repeats: int, device_crop: bool, randaugment: bool
) -> dict[str, float]:
    """Cores of one host that decode so many training clips a second, by storage format.

    Args:
      clips_per_s: that the host's chips consume.
      repeats: clips taken of each decoded video.
      device_crop: crops are cut and resized on the device.
      randaugment: each clip is augmented.
    """
    each = (0.0 if device_crop else HOST_CROP_MS) + (RANDAUGMENT_MS if randaugment else 0.0)
    return {
        name: clips_per_s * (decode / repeats + each) / 1000 / HOST_BUSY
        for name, decode in DECODE_MS.items()
    }


def advice(
    *, remat: Mapping[str, str], clips_per_chip: int, fsdp: int, chips_per_slice: int
) -> list[str]:
    """What to change when a step does not fit, in the order in which it costs least."""
    words = []
    named = [stack for stack, policy in remat.items() if policy != "full"]
    if named:
        fields = " ".join(f"--config.model.{stack}.remat=full" for stack in named)
        words.append(f"keep only block inputs: {fields} (a third more arithmetic there)")
    if clips_per_chip > 1:
        words.append(
            f"take fewer clips at a time: --clips_per_chip={max(clips_per_chip // 2, 1)} (the "
            "global batch is then summed from more micro-batches)"
        )
    if fsdp < chips_per_slice:
        words.append(f"share the state among more chips: --config.mesh.fsdp={fsdp * 2}")
    return words or ["use more chips, or chips with more memory"]
