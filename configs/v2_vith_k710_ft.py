r"""VideoMAE V2 post-pretraining (supervised), ViT-H/16 on Kinetics-710.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.main --config=configs/v2_vith_k710_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vith \
            --workdir=runs/v2_vith_k710_ft
Expect: paper: no figure on Kinetics-710 itself is given.
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
    config.data.published_classes = 710
    config.data.published_videos = 658_340
    config.augment.mix_clips = 8
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.8
    config.train.epochs = 40
    config.train.batch_videos = 128  # 32 GPUs x 4
    config.mesh.fsdp = 16
    return configured(config, mode)
