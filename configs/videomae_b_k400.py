r"""VideoMAE pretraining, ViT-B/16 on Kinetics-400.

Source: arXiv:2203.12602; values from the released script.

Run:    python -m vmae_jax.main --config=configs/videomae_b_k400.py \
            --config.data.manifest=train.csv --workdir=runs/videomae_b_k400
Expect: paper, after fine-tuning: top-1 81.5 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, pretrain_defaults, stack
from vmae_jax.variants import VIDEOMAE_DECODERS, VIT_VARIANTS


def get_config(mode=""):
    config = pretrain_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.decoder = stack(VIDEOMAE_DECODERS["B"])
    config.data.published_videos = 240_436
    # The scripts pass 1601, and the schedule is laid over that number.
    config.train.epochs = 1601
    # 64 GPUs x 32; the paper lists 1024.
    config.train.batch_videos = 2048
    return configured(config, mode)
