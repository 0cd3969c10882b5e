r"""VideoMAE V2 fine-tuning, ViT-L/16 on Something-Something V2.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vitl_ssv2_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vitl \
            --workdir=runs/v2_vitl_ssv2_ft
Expect: paper: top-1 75.7 (2x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 174
    config.data.published_videos = 168_913
    config.data.sampling = "segments"
    config.data.views = (2, 3)
    config.data.flip = False  # left and right are in the names of its classes
    config.augment.mix_clips = 12
    config.optim.base_lr = 5e-4
    config.train.epochs = 20
    config.train.batch_videos = 192  # 32 GPUs x 6
    return configured(config, mode)
