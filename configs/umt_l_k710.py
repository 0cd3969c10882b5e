r"""UMT pretraining, ViT-L/16 with CLIP ViT-L/14 as its teacher, on Kinetics-710.

Source: arXiv:2303.16058; values from the released script. That computes in float16.

Run:    python -m vmae_jax.main --config=configs/umt_l_k710.py \
            --config.data.manifest=train.csv --config.teacher.weights=vit_l14.pth \
            --workdir=runs/umt_l_k710
Expect: released, after fine-tuning: top-1 86.0 (K710), 90.3 (K400), 90.4 (K600), 83.2 (K700),
        74.7 (SSv2).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_defaults
from vmae_jax.variants import CLIP_VARIANTS, VIT_VARIANTS


def get_config(mode=""):
    config = umt_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.teacher.encoder = stack(CLIP_VARIANTS["L/14"])
    config.teacher.encoder.remat = "none"
    config.teacher.tubelet = (1, 14, 14)
    config.teacher.size = (196, 196)  # 14 x 14 patches, the student's grid
    config.teacher.output = 768
    config.data.published_videos = 658_340
    config.optim.base_lr = 1.5e-4
    config.train.epochs = 201  # "200"
    config.train.batch_videos = 2048
    return configured(config, mode)
