"""What is known of the chips: peaks, memory, bandwidths. Datasheet figures, one row a chip.

Utilisation is counted against `peak_tflops`; the other figures serve the plans of `tools/plan`.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
      name: "v5e", "h100", ...; for a device that is not in the table, its `device_kind`.
      platform: "cpu", "gpu" or "tpu".
      kind: the part of JAX's `device_kind` that tells it.
      peak_tflops: dense bf16 peak, TFLOP/s; None: unknown, as all that follows.
      memory_gib: HBM.
      memory_gbps: HBM bandwidth, GB/s.
      link_gbps: GB/s that one chip sends and receives together along one axis of a TPU's torus;
        to all neighbours on the NVLink of a GPU.
      chips_per_host: devices of each host of a larger machine ...
      lone_host: ... and the most that a single host has.
      capability: CUDA compute capability.
      vmem_mib: memory inside a TPU core, which a kernel works in.
    """

    name: str
    platform: str
    kind: str
    peak_tflops: float | None = None
    memory_gib: float | None = None
    memory_gbps: float | None = None
    link_gbps: float | None = None
    chips_per_host: int = 1
    capability: float | None = None
    vmem_mib: float | None = None
    lone_host: int = 8

    def hosts(self, num_devices: int) -> int:
        """Hosts of a machine of so many devices."""
        return 1 if num_devices <= self.lone_host else num_devices // self.chips_per_host


# More specific kinds first. TPU7x: JAX sees two devices a chip, so half a chip each.
CHIPS = (
    Chip("v6e", "tpu", "v6 lite", 918.0, 32.0, 1640.0, 180.0, 4, vmem_mib=128.0),
    Chip("v5e", "tpu", "v5 lite", 197.0, 16.0, 819.0, 90.0, 4, vmem_mib=128.0),
    Chip("v5p", "tpu", "TPU v5", 459.0, 95.0, 2765.0, 180.0, 4, vmem_mib=64.0, lone_host=4),
    Chip("v4", "tpu", "TPU v4", 275.0, 32.0, 1228.0, 90.0, 4, vmem_mib=16.0, lone_host=4),
    Chip("tpu7x", "tpu", "TPU7x", 1153.0, 96.0, 3690.0, 200.0, 8, vmem_mib=64.0),
    Chip("h200", "gpu", "H200", 989.0, 141.0, 4800.0, 900.0, 8, 9.0),
    Chip("h100", "gpu", "H100", 989.0, 80.0, 3350.0, 900.0, 8, 9.0),
    Chip("a100", "gpu", "A100", 312.0, 80.0, 2039.0, 600.0, 8, 8.0),
    Chip("cpu", "cpu", "cpu"),
)


def named(name: str) -> Chip | None:
    """The chip of that name, or None."""
    return next((chip for chip in CHIPS if chip.name == name), None)


def of(device: jax.Device) -> Chip:
    """The chip that a device is; one without figures if it is not in the table."""
    kind = device.device_kind
    for chip in CHIPS:
        if chip.kind in kind:
            return chip
    capability = getattr(device, "compute_capability", None)  # only NVIDIA devices have one
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return Chip(kind, platform, kind, capability=None if capability is None else float(capability))


def local() -> Chip:
    """The chip of this process's first device."""
    return of(jax.local_devices()[0])
