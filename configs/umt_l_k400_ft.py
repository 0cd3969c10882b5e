r"""UMT fine-tuning, ViT-L/16 on Kinetics-400 after Kinetics-710.

Source: arXiv:2303.16058; values from the released script. In its lists of Kinetics-710, the first
400 classes are those of Kinetics-400.

Run:    python -c "print(list(range(400)))" > label_710to400.json
        python -m vmae_jax.tools.convert runs/umt_l_k710_ft --out=runs/umt_l_k710_to_400 \
            --label_map=label_710to400.json
        python -m vmae_jax.main --config=configs/umt_l_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/umt_l_k710_to_400 \
            --workdir=runs/umt_l_k400_ft
Expect: released: top-1 90.3 (4x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_finetune_defaults
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = umt_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.optim.base_lr = 1e-5
    config.optim.warmup_epochs = 1.0
    config.optim.layer_decay = 0.85
    config.train.epochs = 5
    config.train.batch_videos = 256  # 16 GPUs x 16
    return configured(config, mode)
