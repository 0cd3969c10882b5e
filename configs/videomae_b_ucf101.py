r"""VideoMAE pretraining, ViT-B/16 on UCF101 (split 1).

Source: arXiv:2203.12602; values from the released script.

Run:    python -m vmae_jax.main --config=configs/videomae_b_ucf101.py \
            --config.data.manifest=train.csv --workdir=runs/videomae_b_ucf101
Expect: paper, after fine-tuning: top-1 91.3 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, pretrain_defaults, stack
from vmae_jax.variants import VIDEOMAE_DECODERS, VIT_VARIANTS


def get_config(mode=""):
    config = pretrain_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.decoder = stack(VIDEOMAE_DECODERS["B"])
    config.data.published_videos = 9_537
    config.masking.encoder = ("tube", 0.75)
    config.optim.base_lr = 3e-4
    # The scripts pass 3201, and the schedule is laid over that number.
    config.train.epochs = 3201
    config.train.batch_videos = 192
    return configured(config, mode)
