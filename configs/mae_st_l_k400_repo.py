r"""MAE-ST pretraining, ViT-L/16 on Kinetics-400 (the repository's recipe).

Source: arXiv:2205.09113; values from its repository (PRETRAIN.md).

Run:    python -m vmae_jax.main --config=configs/mae_st_l_k400_repo.py \
            --config.data.manifest=train.csv --workdir=runs/mae_st_l_k400_repo
Expect: repository, after fine-tuning: top-1 84.35 (10x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_defaults, stack
from vmae_jax.variants import MAE_ST_REPOSITORY_DECODER, VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    # What its model does otherwise than PySlowFast's, which trained the published weights.
    config.model.init = "mae_st"
    config.model.decoder = stack(MAE_ST_REPOSITORY_DECODER)
    config.model.decoder_positions = "separable"
    config.model.decoder_class_token = "own"
    config.masking.target_frames = "linspace"
    config.data.published_videos = 240_436
    # 128 GPUs x 2; the 4 clips of a video do not count in the rate.
    config.optim.base_lr = 1.6e-3
    config.optim.lr_per_videos = 256.0
    config.optim.warmup_lr = 0.0
    config.optim.min_lr = 0.0
    config.optim.warmup_epochs = 5.0
    config.train.epochs = 100
    config.train.batch_videos = 256
    return configured(config, mode)
