r"""VideoMAE pretraining, ViT-S/16 on Something-Something V2.

Source: arXiv:2203.12602; values from the released script.

Run:    python -m vmae_jax.main --config=configs/videomae_s_ssv2.py \
            --config.data.manifest=train.csv --workdir=runs/videomae_s_ssv2
Expect: paper, after fine-tuning: top-1 66.8 (2x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, pretrain_defaults, stack
from vmae_jax.variants import VIDEOMAE_DECODERS, VIT_VARIANTS


def get_config(mode=""):
    config = pretrain_defaults()
    config.model.encoder = stack(VIT_VARIANTS["S"])
    config.model.decoder = stack(VIDEOMAE_DECODERS["S"])
    config.data.published_videos = 168_913
    config.data.stride = 2
    # The scripts pass 2401, and the schedule is laid over that number.
    config.train.epochs = 2401
    # The script's comment says 32 GPUs x 32; its launch line would give 2048.
    config.train.batch_videos = 1024
    return configured(config, mode)
