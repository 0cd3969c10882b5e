r"""UMT pretraining, ViT-B/16 with CLIP ViT-B/16 as its teacher, on Kinetics-710.

Source: arXiv:2303.16058; values from the released script. That computes in float16.

Run:    python -m vmae_jax.main --config=configs/umt_b_k710.py \
            --config.data.manifest=train.csv --config.teacher.weights=vit_b16.pth \
            --workdir=runs/umt_b_k710
Expect: released, after fine-tuning: top-1 81.9 (K710), 87.4 (K400), 87.8 (K600), 78.5 (K700),
        70.8 (SSv2).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_defaults
from vmae_jax.variants import CLIP_VARIANTS, VIT_VARIANTS


def get_config(mode=""):
    config = umt_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.teacher.encoder = stack(CLIP_VARIANTS["B/16"])
    config.teacher.encoder.remat = "none"
    config.data.published_videos = 658_340
    config.optim.base_lr = 1.5e-4
    config.train.epochs = 201  # "200"
    config.train.batch_videos = 2048
    return configured(config, mode)
