r"""VideoMAE V2 fine-tuning, ViT-H/16 on Kinetics-600.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vith_k600_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vith \
            --workdir=runs/v2_vith_k600_ft
Expect: paper: after K710: top-1 88.3, top-5 98.1 (5x3 views); from pretraining alone: not given.
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["H"])
    config.model.encoder.drop_path = 0.2
    config.model.encoder.remat = "full"
    config.model.head_dropout = 0.5
    config.data.published_classes = 600
    config.data.published_videos = 366_006
    config.augment.mix_clips = 8
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.8
    config.train.epochs = 40
    config.train.batch_videos = 128  # 32 GPUs x 4
    config.mesh.fsdp = 16
    return configured(config, mode)
