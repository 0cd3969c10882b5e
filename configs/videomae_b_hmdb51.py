r"""VideoMAE pretraining, ViT-B/16 on HMDB51 (split 1).

Source: arXiv:2203.12602; values from the paper, for which no script was released.

Run:    python -m vmae_jax.main --config=configs/videomae_b_hmdb51.py \
            --config.data.manifest=train.csv --workdir=runs/videomae_b_hmdb51
Expect: paper, after fine-tuning: top-1 62.6 (10x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, pretrain_defaults, stack
from vmae_jax.variants import VIDEOMAE_DECODERS, VIT_VARIANTS


def get_config(mode=""):
    config = pretrain_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.decoder = stack(VIDEOMAE_DECODERS["B"])
    config.data.published_videos = 3_570
    config.data.stride = 2
    config.masking.encoder = ("tube", 0.75)
    config.optim.base_lr = 3e-4
    config.train.epochs = 4800
    config.train.batch_videos = 192
    return configured(config, mode)
