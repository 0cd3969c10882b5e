r"""MAE-ST pretraining, ViT-B/16 on Kinetics-400.

Source: arXiv:2205.09113; values from PySlowFast's released config.

Run:    python -m vmae_jax.main --config=configs/mae_st_b_k400.py \
            --config.data.manifest=train.csv --workdir=runs/mae_st_b_k400
Expect: paper, after fine-tuning: top-1 81.3 (7x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.data.published_videos = 240_436
    # Per node with 64 videos. Batch 512 is the paper's; the number of nodes is not published.
    config.optim.lr_per_videos = 64.0
    config.optim.warmup_epochs = 60.0
    return configured(config, mode)
