r"""UMT fine-tuning, ViT-B/16 on Kinetics-700 after Kinetics-710.

Source: arXiv:2303.16058; values from the released script. label_mixto700.json (which of the 710
classes these are) is a download that its repository names.

Run:    python -m vmae_jax.tools.convert runs/umt_b_k710_ft --out=runs/umt_b_k710_to_700 \
            --label_map=label_mixto700.json
        python -m vmae_jax.main --config=configs/umt_b_k700_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/umt_b_k710_to_700 \
            --workdir=runs/umt_b_k700_ft
Expect: released: top-1 78.5 (4x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_finetune_defaults
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = umt_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 700
    config.optim.base_lr = 2e-5
    config.optim.warmup_epochs = 1.0
    config.train.epochs = 5
    config.train.batch_videos = 256  # 16 GPUs x 16
    return configured(config, mode)
