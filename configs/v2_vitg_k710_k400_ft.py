r"""VideoMAE V2 fine-tuning, ViT-g/14 on Kinetics-400 after Kinetics-710.

Source: arXiv:2303.16727; values from the released script.

Run:    python -m vmae_jax.tools.convert runs/v2_vitg_k710_ft --out=runs/v2_vitg_k710_to_400 \
            --label_map=label_710to400.json
        python -m vmae_jax.main --config=configs/v2_vitg_k710_k400_ft.py \
            --config.data.manifest=train.csv \
            --config.init_from=runs/v2_vitg_k710_to_400 --workdir=runs/v2_vitg_k710_k400_ft
Expect: paper: top-1 88.5, top-5 98.1 (5x3 views).
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
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.augment.mix_clips = 6
    # The paper lists batch 32, no warm-up, drop path 0.3, dropout 0.5 and weight decay 0.05.
    config.optim.base_lr = 1e-5
    config.optim.warmup_epochs = 1.0
    config.optim.weight_decay = 0.1
    config.optim.layer_decay = 0.9
    config.train.epochs = 3
    config.train.batch_videos = 96  # 32 GPUs x 3
    config.mesh.fsdp = 16
    return configured(config, mode)
