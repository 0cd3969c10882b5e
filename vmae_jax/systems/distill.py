"""Distillation of a large fine-tuned classifier into a small one, on labelled clips.

Source: VideoMAE V2 (arXiv:2303.16727), which follows "a good teacher is patient and consistent"
(arXiv:2106.05237). No code was released; what the paper leaves open is a field of `config.distill`.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import mixed_clips
from vmae_jax.models import flops
from vmae_jax.ops.losses import Ratio, distillation, soft_target_cross_entropy
from vmae_jax.systems.augmented import augmented, smoothed
from vmae_jax.systems.base import ArraySpec, Batch, Params, System, compute_copy
from vmae_jax.systems.classifiers import classifier, encoder_of
from vmae_jax.systems.inputs import clip_spec, stream


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on.

    Raises:
      ConfigError: the number of classes is open.
    """
    student, teacher = classifier(config, chip), classifier(config, chip, "teacher")
    soft, options = smoothed(config), config.distill
    temperature = options.temperature
    scale = temperature**2 if options.times_square else 1.0

    def targets(frozen: Params, batch: Batch, keys: jax.Array) -> Batch:
        """Adds augmented clips and what teacher and labels say of them."""
        view = augmented(config, batch, keys)
        frozen = compute_copy(frozen, config.model.dtype)
        with jax.named_scope("teacher"):
            seen = view.video if options.teacher_view == "same" else view.clean
            answers = jax.nn.softmax(teacher.logits(frozen, seen, None) / temperature)
        if options.teacher_view == "clean":
            answers = view.blended(answers)
        labels = view.blended(soft(batch["label"]))
        return {"video": view.video, "answer": answers, "target": labels}

    def loss(
        params: Params, batch: Batch, keys: jax.Array, train: bool
    ) -> tuple[Ratio, dict[str, Ratio]]:
        logits = student.logits(params, batch["video"], stream(keys, 3) if train else None)
        taught = distillation(logits, batch["answer"], temperature=temperature)
        told = soft_target_cross_entropy(logits, batch["target"])
        share = options.label_weight
        total = scale * taught.total
        if share:  # else a clip without label would spoil what is not used
            total = (1.0 - share) * total + share * told.total
        agreed = jnp.argmax(logits, axis=-1) == jnp.argmax(batch["answer"], axis=-1)
        agreement = Ratio(agreed.sum().astype(jnp.float32), taught.weight)
        return Ratio(total, taught.weight), {"teacher_kl": taught, "agreement": agreement}

    macs = dict(student.macs)
    return System(
        name=config.system,
        init=student.init,
        targets=targets,
        loss=loss,
        batch_spec={**clip_spec(config), "label": ArraySpec((), "int32")},
        compute_dtype=config.model.dtype,
        macs=macs | {"teacher": sum(teacher.macs.values())},
        # Of the teacher the forward pass alone.
        train_flops=flops.training_flops(macs) + 2 * sum(teacher.macs.values()),
        encoder=encoder_of(config, chip, student),
        together=mixed_clips(config),
        logits=student.of_batch,
        choices={**student.choices, **teacher.choices},
        init_frozen=teacher.init,
    )
