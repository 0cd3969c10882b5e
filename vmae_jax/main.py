r"""Trains a system from a config: `python -m vmae_jax.main --config=FILE.py --workdir=DIR`.

The same command in the same workdir goes on where it stopped. Fields are overridden by flags:
    python -m vmae_jax.main --config=configs/v2_vitb.py --workdir=runs/b \
        --config.data.manifest=train.csv --config.train.batch_videos=64
On several hosts the same command runs on each; see docs/scaling.md.
"""

import logging
import pathlib
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from vmae_jax import assemble, distributed, systems
from vmae_jax import config as config_lib
from vmae_jax.data.pipeline import ClipPipeline
from vmae_jax.errors import UserError
from vmae_jax.evals.hook import make_hook
from vmae_jax.evals.reconstruct import make_draw
from vmae_jax.train.loop import Outcome, Trainer
from vmae_jax.train.sharding import make_mesh

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/v2_vitb.py or configs/v2_vitb.py:smoke.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")

_PLATFORM = flags.DEFINE_enum(
    "platform", "auto", distributed.PLATFORMS, "Where to compute; an error where JAX finds another."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0; TPU pods, GKE, SLURM and Open MPI need none."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "Processes of the run, one a host; with --coordinator.", lower_bound=0
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", -1, "Number of this process, from 0; with --coordinator.", lower_bound=-1
)
_HEARTBEAT_S = flags.DEFINE_integer(
    "heartbeat_s",
    distributed.HEARTBEAT_S,
    "Seconds after which a silent process is taken for dead and the others end.",
    lower_bound=1,
)

_EXIT_ON_SIGNAL = 143  # what a shell reports of a process ended by SIGTERM

_log = logging.getLogger("vmae_jax.main")


def run(config: ConfigDict, workdir: str) -> Outcome:
    """Validates a config, opens its parts and trains.

    Args:
      config: recipe; checked here.
      workdir: folder of the run.

    Raises:
      UserError: of whatever kind; says what to put right.
    """
    if "://" in workdir:
        raise config_lib.ConfigError(
            f"--workdir={workdir}: a run writes to a folder, not to a bucket; mount one that all "
            "hosts see (docs/scaling.md)"
        )
    config_lib.validate(config)
    config = assemble.with_teacher(assemble.with_classes(config), workdir)
    system = systems.build(config)
    num_videos = assemble.count_videos(config)
    plan = config_lib.plan(config, num_videos)
    config_lib.check_devices(config, jax.device_count())
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    _describe(config, plan, num_videos)
    draw = make_draw(system) if system.reconstruct else None
    evaluate = make_hook(system, config, assemble.pipeline_options)
    trainer = Trainer(
        system, assemble.make_run(config, plan), workdir, draw=draw, evaluate=evaluate
    )
    return trainer.fit(
        lambda step: assemble.open_pipeline(config, start_step=step),
        ClipPipeline.check_state,
        assemble.initial_weights(config),
        assemble.frozen_weights(config),
    )


def _describe(config: ConfigDict, plan: config_lib.Plan, num_videos: int) -> None:
    """Logs the numbers that follow from the recipe, before anything slow begins."""
    published = config.data.published_videos
    if published and num_videos != published:
        _log.info("The manifest has %d videos; the published set %d.", num_videos, published)
    _log.info(
        "%d steps of %d videos (%d clips), %d per epoch; warm-up %d steps to lr %.3g, floor %.3g.",
        plan.total_steps,
        config.train.batch_videos,
        plan.clips_per_step,
        plan.steps_per_epoch,
        plan.warmup_steps,
        plan.peak_lr,
        plan.floor_lr,
    )
    _log.info(
        "%d %s device(s), %d of which share one copy of the parameters.",
        jax.device_count(),
        jax.local_devices()[0].device_kind,
        make_mesh(config.mesh.fsdp).shape["fsdp"],
    )


def _main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; fields are set as --config.a.b=value")
    _log_to_terminal()  # absl has put its own handler in
    try:
        with logging_redirect_tqdm():
            outcome = run(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        _log.error("%s: %s", type(error).__name__, error)
        return 1
    if outcome.signal:
        return _EXIT_ON_SIGNAL
    _log.info("Done: step %d in %s.", outcome.step, _WORKDIR.value)
    return 0


def _log_to_terminal() -> None:
    """One short line a message in place of absl's, and of the libraries only warnings."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("vmae_jax").setLevel(logging.INFO)


def _parse_where() -> flags.FlagValues:
    """Reads the flags that say where to run before all others.

    A config file is code that runs while flags are parsed, and could touch a device.
    """
    early = flags.FlagValues()
    for flag in (_PLATFORM, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _HEARTBEAT_S):
        early[flag.name] = flags.FLAGS[flag.name]
    early.set_gnu_getopt(True)  # past the value in "--config FILE"
    early(sys.argv, known_only=True)
    return early


def main() -> None:
    """Entry point of the command line."""
    flags.mark_flags_as_required(["config", "workdir"])
    _log_to_terminal()
    try:
        where = _parse_where()
        given = distributed.Processes(where.coordinator, where.num_processes, where.process_id)
        with distributed.joined(given, platform=where.platform, heartbeat_s=where.heartbeat_s):
            app.run(_main)
    except (flags.Error, distributed.DistributedError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
