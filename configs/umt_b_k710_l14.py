r"""UMT pretraining, ViT-B/16 with CLIP ViT-L/14 as its teacher, on Kinetics-710.

Source: arXiv:2303.16058, which compares teachers; no script was released for this one. All but the
teacher is that of configs/umt_b_k710.py, and the teacher that of configs/umt_l_k710.py.

Run:    python -m vmae_jax.main --config=configs/umt_b_k710_l14.py \
            --config.data.manifest=train.csv --config.teacher.weights=vit_l14.pth \
            --workdir=runs/umt_b_k710_l14
Expect: not published for Kinetics-710.
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_defaults
from vmae_jax.variants import CLIP_VARIANTS, VIT_VARIANTS


def get_config(mode=""):
    config = umt_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.teacher.encoder = stack(CLIP_VARIANTS["L/14"])
    config.teacher.encoder.remat = "none"
    config.teacher.tubelet = (1, 14, 14)
    # 14 x 14 patches, the student's grid. The weights for 336 pixels (vit_l14_336.pth) fit too.
    config.teacher.size = (196, 196)
    config.teacher.output = 768
    config.data.published_videos = 658_340
    config.optim.base_lr = 1.5e-4
    config.train.epochs = 201
    config.train.batch_videos = 2048
    return configured(config, mode)
