r"""VideoMAE V2 fine-tuning, ViT-g/14 on Kinetics-400.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vitg_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vitg \
            --workdir=runs/v2_vitg_k400_ft
Expect: paper: top-1 87.2, top-5 97.4 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["g"])
    config.model.encoder.drop_path = 0.2
    config.model.encoder.remat = "full"
    config.model.tubelet = (2, 14, 14)
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.augment.mix_clips = 6
    config.optim.base_lr = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.layer_decay = 0.9
    config.train.epochs = 30
    config.train.batch_videos = 192  # 64 GPUs x 3
    config.mesh.fsdp = 16
    return configured(config, mode)
