r"""VideoMAE V2 fine-tuning, ViT-L/16 on Kinetics-400.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vitl_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vitl \
            --workdir=runs/v2_vitl_k400_ft
Expect: paper: top-1 85.4 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.augment.mix_clips = 12
    config.optim.base_lr = 0.002
    config.train.epochs = 35
    config.train.batch_videos = 192  # 32 GPUs x 6
    return configured(config, mode)
