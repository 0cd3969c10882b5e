r"""VideoMAE V2 fine-tuning, ViT-B/16 on Something-Something V2.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vitb_ssv2_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vitb \
            --workdir=runs/v2_vitb_ssv2_ft
Expect: paper: top-1 71.2 (2x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 174
    config.data.published_videos = 168_913
    config.data.sampling = "segments"
    config.data.views = (2, 3)
    config.data.flip = False  # left and right are in the names of its classes
    config.augment.mix_clips = 32
    config.optim.base_lr = 0.002
    config.optim.layer_decay = 0.65
    config.train.epochs = 25
    config.train.batch_videos = 256  # 16 GPUs x 16
    return configured(config, mode)
