r"""UMT fine-tuning, ViT-L/16 on Something-Something V2.

Source: arXiv:2303.16058; values from the released script.

Run:    python -m vmae_jax.main --config=configs/umt_l_ssv2_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/umt_l_k710 \
            --workdir=runs/umt_l_ssv2_ft
Expect: released: top-1 74.7 (the script tests 2x3 views; the table of results says 4x3).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_finetune_defaults
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = umt_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 174
    config.data.published_videos = 168_913
    config.data.sampling = "segments"
    config.data.views = (2, 3)
    config.data.flip = False  # left and right are in the names of its classes
    config.optim.base_lr = 4e-4
    config.optim.warmup_epochs = 4.0
    config.optim.layer_decay = 0.85
    config.train.epochs = 14
    config.train.batch_videos = 256  # 16 GPUs x 16
    return configured(config, mode)
