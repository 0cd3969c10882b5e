r"""MAE-ST pretraining, ViT-H/16 on Kinetics-600.

Source: arXiv:2205.09113; weights were published, a config for this set was not: values of
Kinetics-400.

Run:    python -m vmae_jax.main --config=configs/mae_st_h_k600.py \
            --config.data.manifest=train.csv --workdir=runs/mae_st_h_k600
Expect: paper, after fine-tuning on Kinetics-600 and then 400: top-1 86.8, top-5 97.2.
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_defaults()
    config.model.encoder = stack(VIT_VARIANTS["H"])
    config.model.encoder.remat = "full"
    config.data.published_videos = 366_006
    config.optim.warmup_epochs = 60.0
    config.train.epochs = 400  # with 4 clips of each video, the "1600 epochs" of the weights
    config.mesh.fsdp = 16
    return configured(config, mode)
