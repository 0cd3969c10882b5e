r"""VideoMAE V2 post-pretraining (supervised), ViT-B/16 on Kinetics-710.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vitb_k710_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vitb \
            --workdir=runs/v2_vitb_k710_ft
Expect: paper: top-1 79.3, top-5 94.0 on Kinetics-710 (hosted weights of InternVideo).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 710
    config.data.published_videos = 658_340
    config.augment.mix_clips = 32
    config.optim.base_lr = 7e-4
    config.train.epochs = 90
    config.train.batch_videos = 512  # 32 GPUs x 16
    return configured(config, mode)
