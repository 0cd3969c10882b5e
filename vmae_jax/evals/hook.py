"""Figures of a run while it trains, as `config.eval` asks for them.

A classifier is validated on the centre view of each video; the encoder of anything else is probed.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from vmae_jax.config import ConfigError
from vmae_jax.data.pipeline import PipelineOptions
from vmae_jax.evals.multiview import evaluate, make_classify
from vmae_jax.evals.passes import EvaluationError, as_tested, open_pass
from vmae_jax.evals.probe import make_probe, summary
from vmae_jax.systems.base import Params, System

Hook = Callable[[Params], dict[str, float]]


def make_hook(
    system: System,
    config: ConfigDict,
    pipeline_options: Callable[[ConfigDict], PipelineOptions],
) -> Hook | None:
    """Returns `params -> figures`, to be called by all processes together; None: not asked for.

    Nothing is opened before the first call but the lists of videos, which are checked here.

    Args:
      system: of the run.
      config: its recipe.
      pipeline_options: from a recipe to what is read and how (`assemble.pipeline_options`).

    Returns:
      a function whose figures are the same on all processes: "val_top1", "val_top5",
      "val_class_mean" and "val_failures" of a classifier; else "knn_top1", "linear_top1",
      "attentive_top1", and the same with 5, of the probes asked for.

    Raises:
      ConfigError: `eval.every` without `eval.manifest`.
      EvaluationError, ManifestError: lists that cannot be used.
    """
    if not config.eval.every:
        return None
    if not config.eval.manifest:
        raise ConfigError(
            f"config.eval.every={config.eval.every}, but config.eval.manifest is empty: name a "
            "list of labelled videos to evaluate on"
        )
    val = pipeline_options(as_tested(config, manifest=config.eval.manifest, root=config.eval.root))
    if system.logits is not None:
        return _validation(system, config, val)
    train = pipeline_options(
        as_tested(
            config,
            manifest=config.eval.train_manifest or config.data.manifest,
            root=config.eval.train_root if config.eval.train_manifest else config.data.root,
        )
    )
    run = make_probe(system, tuple(config.eval.probes), train, val, seed=config.seed)
    return lambda params: summary(run(params))


def _validation(system: System, config: ConfigDict, val: PipelineOptions) -> Hook:
    found, classes = val.open_source().num_classes, config.model.num_classes
    if not 0 < found <= classes:
        raise EvaluationError(
            f"{val.manifest} has labels of {found} classes, and the model {classes}; "
            "config.eval.manifest must be labelled like the videos that are trained on"
        )
    classify, names = make_classify(system), tuple(config.model.class_names)

    def validate(params: Params) -> dict[str, float]:
        with open_pass(val) as pipeline:
            result = evaluate(system, params, pipeline, classify=classify, class_names=names)
        figures = {f"val_{name}": value for name, value in result.metrics().items()}
        return figures | {"val_failures": float(len(result.failures))}

    return validate
