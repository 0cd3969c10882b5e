r"""VideoMAE V2 fine-tuning, ViT-g/14 on HMDB51 (split 1) after Kinetics-710.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vitg_k710_hmdb51_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vitg_k710_ft \
            --workdir=runs/v2_vitg_k710_hmdb51_ft
Expect: paper: top-1 88.1 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["g"])
    config.model.encoder.drop_path = 0.35
    config.model.encoder.remat = "full"
    config.model.tubelet = (2, 14, 14)
    config.model.head_dropout = 0.5
    config.data.published_classes = 51
    config.data.published_videos = 3_570
    config.data.stride = 2
    config.augment.mix_clips = 6
    config.optim.base_lr = 5e-4
    config.optim.layer_decay = 0.9
    config.train.epochs = 15
    config.train.batch_videos = 24  # 8 GPUs x 3
    config.mesh.fsdp = 16
    return configured(config, mode)
