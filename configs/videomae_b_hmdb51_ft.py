r"""VideoMAE fine-tuning, ViT-B/16 on HMDB51 (split 1).

Source: arXiv:2203.12602; values from the paper, for which no script was released.

Run:    python -m vmae_jax.main --config=configs/videomae_b_hmdb51_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/videomae_b_hmdb51 \
            --workdir=runs/videomae_b_hmdb51_ft
Expect: paper: top-1 62.6 (10x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 51
    config.data.published_videos = 3_570
    config.data.stride = 2
    config.data.views = (10, 3)
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.7
    config.train.epochs = 50
    config.train.batch_videos = 128
    return configured(config, mode)
