r"""VideoMAE fine-tuning, ViT-L/16 on Kinetics-400.

Source: arXiv:2203.12602; values from the released script.

Run:    python -m vmae_jax.main --config=configs/videomae_l_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/videomae_l_k400 \
            --workdir=runs/videomae_l_k400_ft
Expect: paper: top-1 85.2, top-5 96.8 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.augment.mix_clips = 4
    # The paper lists batch 512, rate 1e-3, 50 epochs, drop path 0.2 and dropout 0.5.
    config.optim.base_lr = 0.002
    config.train.epochs = 35
    config.train.batch_videos = 128  # 64 GPUs x 2
    return configured(config, mode)
