"""The flags with which a tool runs as one of several processes, or on a platform of choice."""

import argparse
import contextlib
from collections.abc import Iterator

import jax

from vmae_jax import distributed
from vmae_jax.train.sharding import make_mesh


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `vmae_jax.main` that say where to run."""
    group = parser.add_argument_group("where to run (docs/scaling.md)")
    group.add_argument("--platform", choices=distributed.PLATFORMS, default="auto")
    group.add_argument("--coordinator", default="", help="host:port of process 0")
    group.add_argument("--num_processes", type=int, default=0)
    group.add_argument("--process_id", type=int, default=-1)
    group.add_argument("--fsdp", type=int, default=1, help="devices that share the parameters")


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Joins the other processes, and sets a mesh of all devices.

    Raises:
      DistributedError: see `distributed.joined`.
    """
    given = distributed.Processes(args.coordinator, args.num_processes, args.process_id)
    with (
        distributed.joined(given, platform=args.platform),
        jax.set_mesh(make_mesh(args.fsdp)),
    ):
        yield


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0
