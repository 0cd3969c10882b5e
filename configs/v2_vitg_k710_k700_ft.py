r"""VideoMAE V2 fine-tuning, ViT-g/14 on Kinetics-700 after Kinetics-710.

Source: arXiv:2303.16727; no recipe was published for it; values of Kinetics-600.

Run:    python -m vmae_jax.tools.convert runs/v2_vitg_k710_ft --out=runs/v2_vitg_k710_to_700 \
            --label_map=label_710to700.json
        python -m vmae_jax.main --config=configs/v2_vitg_k710_k700_ft.py \
            --config.data.manifest=train.csv \
            --config.init_from=runs/v2_vitg_k710_to_700 --workdir=runs/v2_vitg_k710_k700_ft
Expect: paper: no figure is given.
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["g"])
    config.model.encoder.drop_path = 0.25
    config.model.encoder.remat = "full"
    config.model.tubelet = (2, 14, 14)
    config.data.published_classes = 700
    config.augment.mix_clips = 6
    config.optim.base_lr = 1e-5
    config.optim.warmup_epochs = 1.0
    config.optim.weight_decay = 0.1
    config.optim.layer_decay = 0.9
    config.train.epochs = 3
    config.train.batch_videos = 96  # 32 GPUs x 3
    config.mesh.fsdp = 16
    return configured(config, mode)
