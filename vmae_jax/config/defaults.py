"""Fields and defaults of the recipes of every system."""

import dataclasses

from ml_collections import ConfigDict

from vmae_jax.config.errors import ConfigError
from vmae_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vmae_jax.variants import (
    CLIP_VARIANTS,
    MAE_ST_DECODER,
    MVIT_VARIANTS,
    VIDEOMAE_DECODERS,
    VIT_VARIANTS,
    MViTSpec,
    StackSpec,
    without_last_stride,
)


def stack(spec: StackSpec) -> ConfigDict:
    """The config fields of a transformer stack of the given size."""
    return ConfigDict({**dataclasses.asdict(spec), **_running()})


def mvit(spec: MViTSpec) -> ConfigDict:
    """The config fields of a multiscale transformer of the given size, in place of `stack`'s."""
    # The number of all blocks, for those who ask a network no more than that.
    return ConfigDict({**dataclasses.asdict(spec), "depth": spec.depth, **_running()})


def _running() -> dict[str, str | float]:
    """How the blocks of a network are run."""
    return {
        # auto: cuDNN's flash kernel on GPUs, ours (packed) on TPUs, XLA elsewhere.
        "attention": "auto",
        # none | named (keep matrix products, recompute the rest) | full (keep block inputs).
        "remat": "named",
        "drop_path": 0.0,
    }


def _defaults(system: str) -> ConfigDict:
    """What all recipes have, with the released values of VideoMAE's pretraining."""
    config = ConfigDict()
    config.system = system
    config.seed = 0
    # Weights only, at step 0; docs/weights.md says what is read. A checkpoint in the workdir itself
    # always comes first.
    config.init_from = ""

    config.model = ConfigDict()
    config.model.architecture = "vit"  # vit | mvit; decides which fields there are below
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.tubelet = (2, 16, 16)  # frames, rows, columns of one patch
    config.model.channels = 3  # 3: RGB; 1: grey
    # sincos (fixed) | separable (learned tables of space and of time) | joint (one learned table) |
    # frozen (the table that `init_from` has, as it is).
    config.model.positions = "sincos"
    # Frames, rows, columns of tokens whose sinusoid a classifier's clips have; on another grid it
    # is interpolated. (): that of the clip's own grid.
    config.model.sincos_grid = ()
    config.model.class_token = False  # one token more, in front of the patches'
    config.model.key_bias = False  # q, k and v all have biases; False: q and v
    # How parameters begin: videomae | mae_st (its repository) | slowfast (PySlowFast).
    config.model.init = "videomae"
    config.model.layer_scale = 0.0  # 0: no layer scale, as in every published model
    config.model.cosine_attention = False
    config.model.gelu = "exact"  # exact | tanh (faster on TPU; not the released function)
    config.model.layers = "scan"  # scan | unroll
    config.model.dtype = "bfloat16"  # of the matrix products; parameters stay float32

    config.data = ConfigDict()
    # A list of videos, a folder of tools/prepare, tfds:NAME, or a mixture (TOML); docs/data.md.
    config.data.manifest = ""
    config.data.root = ""  # folder or bucket of its paths; "": its own
    config.data.style = "auto"  # auto | csv | path_label | path_start_total
    config.data.allow_outside = False  # accept paths that leave the root
    # Names of the pictures in folders of frames: ((path regex, name), ...); see docs/data.md.
    config.data.frame_templates = (
        ("(^|/)(AVA|ava)v?([^A-Za-z]|$)", "{folder}_{number:06d}.jpg"),
        ("", "img_{number:05d}.jpg"),
    )
    config.data.published_videos = 0  # size of the published set; a different count is remarked on
    config.data.published_classes = 0  # its classes, where a step is planned or timed without data
    config.data.frames = 16
    config.data.stride = 4  # frames from one to the next
    config.data.stride_overrides = ()  # ((path regex, stride), ...)
    # dense (pretraining) | window (fine-tuning) | segments | seconds (MAE-ST and MaskFeat: a clip
    # lasts frames x stride / fps seconds, whatever the rate of the video) | sparse (Unmasked
    # Teacher's fine-tuning). segments and sparse spread a clip over the video; no stride counts.
    config.data.sampling = "dense"
    config.data.fps = 30.0  # of "seconds"
    # random (training) | centre (validation) | views (test): which frames the rule picks.
    config.data.select = "random"
    config.data.views = (5, 3)  # clips, crops that a test takes of each video
    config.data.size = (224, 224)  # height, width
    config.data.crop = "multi_scale"  # multi_scale | resized | views | centre | none; docs/data.md
    config.data.short_side = 0  # of "views": frames are brought to it before the size; 0: to that
    config.data.scales = (1.0, 0.875, 0.75, 0.66)
    config.data.crop_area = (0.08, 1.0)  # of "resized": least and most, as shares of the frame
    config.data.crop_aspect = (3 / 4, 4 / 3)  # of "resized": least and most width / height
    # (magnitude, operations, deviation of the magnitude), e.g. (7, 4, 0.5) as released; (): none.
    config.data.randaugment = ()
    # Kernel that resizes. antialias: released pretraining; bilinear: released fine-tuning, test.
    config.data.filter = "antialias"
    # Where crops are cut out and resized. host: by Pillow, as released. device: the host sends the
    # frames of a video once, for all its crops, and two matrix products make each of them, within
    # one level of 255 of Pillow. Saves host time, the more the more repeats.
    config.data.resize = "host"
    # Height and width of the frames sent to the device; what does not fit is shrunk first. Choose
    # the size of your videos, e.g. (320, 568) for a short side of 320.
    config.data.canvas = (256, 456)
    config.data.repeats = 1  # clips taken of each video that is read
    config.data.repeat_windows = False  # each of them has its own frames; else crops of the same
    # Off: the released pretraining transform has no flip, though the paper lists one for K400.
    config.data.flip = False
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.data.on_error = "skip"  # skip (count, log, substitute) | raise
    config.data.max_error_rate = 0.01
    config.data.min_errors = 10  # the rate counts once so many were met
    config.data.clip_timeout_s = 30.0
    config.data.stall_timeout_s = 600.0  # the run stops if no batch comes for so long
    config.data.workers = -1  # processes that decode; -1: one per core less one, at most 64
    # Times that workers are started anew when one dies, at the same batch; 0: the run stops.
    config.data.max_worker_restarts = 0
    config.data.worker_buffer = 1  # messages that each worker prepares ahead
    config.data.worker_videos = 0  # videos in a message; 0: as many as fit in 64 MiB
    config.data.max_bytes = 512 * 2**20  # of one file
    config.data.max_pixels = 4096 * 4096  # of one frame
    config.data.max_frames = 500_000  # of one video
    config.data.shuffle = True

    config.optim = ConfigDict()
    config.optim.base_lr = 1.5e-4  # per `lr_per_videos` videos of the global batch
    config.optim.lr_per_videos = 256.0
    config.optim.min_lr = 1e-5  # scaled like base_lr
    config.optim.warmup_epochs = 40.0
    config.optim.warmup_lr = 0.0  # of the first update, if there is a warm-up; scaled like base_lr
    # peak_twice (the warm-up ends with the peak and the cosine begins with it: VideoMAE) |
    # peak_once (only the cosine has it: MAE-ST, MaskFeat) | cosine_throughout (from update 0 on).
    config.optim.schedule = "peak_twice"
    config.optim.weight_decay = 0.05
    config.optim.decay_tables = False  # of tokens and tables of positions too, not kernels alone
    config.optim.decay_scales = False  # of norms and of layer scale too
    config.optim.betas = (0.9, 0.95)
    config.optim.eps = 1e-8
    config.optim.clip_norm = 0.0  # 0: no clipping
    config.optim.accumulate = 1  # micro-batches per step; the global batch stays what it is
    config.optim.ema_decay = 0.0  # 0: no average is kept
    # Rate of block k of L: x layer_decay ** (L - k); of the patch embedding: ** (L + 1).
    config.optim.layer_decay = 1.0
    # Non-finite updates before the run stops; looked at when metrics are logged.
    config.optim.max_skipped_in_a_row = 10

    config.train = ConfigDict()
    config.train.epochs = 801
    config.train.steps = 0  # 0: epochs decide; else the whole schedule is laid over so many steps
    config.train.batch_videos = 1024  # over all devices; clips = videos x data.repeats
    config.train.log_every = 50
    config.train.picture_every = 0  # steps; 0: never
    config.train.checkpoint_every = 1000
    config.train.keep_last = 3
    config.train.keep_every = 0  # also keep every so many steps for good; 0: none
    config.train.stop_after = 0  # end this process at that step, the schedule unchanged; 0: no
    config.train.peak_tflops = 0.0  # per chip, for MFU; 0: the datasheet value, if it is known
    config.train.wandb_project = ""  # "": Weights & Biases off

    config.mesh = ConfigDict()
    # Devices that share one copy of parameters and moments; at most: the degree in force is the
    # greatest common divisor with the number of devices, and is logged at the start.
    config.mesh.fsdp = 1

    # How good the representation is while it trains; of the parameters' average if one is kept.
    config.eval = ConfigDict()
    config.eval.every = 0  # steps; 0: never
    config.eval.manifest = ""  # labelled videos that are not trained on
    config.eval.root = ""  # folder or bucket of its paths; "": its own
    return config


def use_mvit(config: ConfigDict, spec: MViTSpec) -> None:
    """Makes the network of an unlocked config a multiscale one, with the fields that it has."""
    config.model.architecture = "mvit"
    config.model.encoder = mvit(spec)
    # Frames, rows, columns that the stem's convolution steps by; its kernel is larger.
    config.model.tubelet = (2, 4, 4)
    config.model.class_token = True
    # none | separable | joint: learned, added to the stem's tokens. Positions relative to each
    # other are learned in every block whatever this says.
    config.model.positions = "none"
    for field in ("sincos_grid", "key_bias", "init", "layer_scale", "cosine_attention"):
        del config.model[field]


def pretrain_defaults() -> ConfigDict:
    """Returns a locked config with VideoMAE's released pretraining values (ViT-B, 16 x 224 x 224).

    Source: VideoMAE (arXiv:2203.12602) and its released scripts; where the two differ, the scripts.
    """
    config = _defaults("videomae")
    config.model.decoder = stack(VIDEOMAE_DECODERS["B"])

    config.masking = ConfigDict()
    config.masking.encoder = ("tube", 0.9)  # tube | random | frame | agnostic | block, ratio hidden
    # none (decode all hidden tokens) | running_cell | random | frame | tube, ratio not decoded.
    config.masking.decoder = ("none", 0.0)
    config.masking.normalize_target = True  # per patch and channel, as released
    _use_probes(config)
    return config.lock()


def mae_st_defaults() -> ConfigDict:
    """Returns a locked config with MAE-ST's pretraining values (ViT-L, Kinetics-400).

    They are PySlowFast's, which trained the published weights. Both released implementations
    compute in float32.

    Source: MAE-ST (arXiv:2205.09113) and PySlowFast's released config (reference: mae_st.md,
    sections 0 and 4.3).
    """
    config = _defaults("mae_st")
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.positions = "separable"
    config.model.class_token = True
    config.model.key_bias = True
    config.model.init = "slowfast"
    config.model.decoder = stack(MAE_ST_DECODER)
    config.model.decoder_positions = "joint"  # sincos | separable | joint
    # encoder (that which comes out of it) | own (learned, from zero) | none.
    config.model.decoder_class_token = "encoder"

    config.masking = ConfigDict()
    # Of the ablation: tube (space only) | frame (time only) | block.
    config.masking.encoder = ("agnostic", 0.9)
    config.masking.decoder = ("none", 0.0)  # as for VideoMAE
    # first (of each tubelet) | linspace (one of each, up to the clip's last: the repository) | all.
    config.masking.target_frames = "first"
    config.masking.normalize_target = True  # per patch, channels together
    # Where mask tokens stand in: decoder | encoder (which then sees all tokens, for comparison).
    config.masking.mask_tokens = "decoder"

    config.data.sampling = "seconds"
    config.data.crop = "resized"
    config.data.crop_area = (0.5, 1.0)
    config.data.filter = "bilinear"
    config.data.flip = True
    config.data.repeats = 4
    config.data.repeat_windows = True
    config.data.mean, config.data.std = (0.45,) * 3, (0.225,) * 3

    # Per node of 8 GPUs with 32 videos; rates are scaled by the nodes.
    config.optim.base_lr = 1e-4
    config.optim.lr_per_videos = 32.0
    config.optim.warmup_lr = 1e-6
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 30.0
    config.optim.schedule = "peak_once"
    config.optim.decay_tables = True
    config.optim.clip_norm = 0.02
    config.train.epochs = 200
    config.train.batch_videos = 512
    _use_probes(config)
    return config.lock()


def _use_probes(config: ConfigDict) -> None:
    """Adds what says how good a representation is that nothing is classified with yet."""
    # Labelled videos that probes learn from; "": those of the run itself.
    config.eval.train_manifest = ""
    config.eval.train_root = ""
    config.eval.probes = ("knn", "linear")  # knn | linear | attentive


def maskfeat_defaults(architecture: str = "mvit") -> ConfigDict:
    """Returns a locked config with MaskFeat's released pretraining values.

    Args:
      architecture: "mvit": of videos (MViTv2-S 16x4, Kinetics-400). "vit": of images, clips of one
        frame (ViT-B, ImageNet).

    Source: MaskFeat (arXiv:2112.09133) and its released configs (reference: maskfeat.md, 6 to 8.1).
    """
    config = _defaults("maskfeat")
    if architecture == "mvit":
        use_mvit(config, without_last_stride(MVIT_VARIANTS["S"]))

    config.masking = ConfigDict()
    # cube (blocks in space and time) | tube (blocks in space) | frame | random (cells), ratio
    # hidden.
    config.masking.encoder = ("cube", 0.4)
    # Frames, rows, columns that are hidden together.
    config.masking.cell = (2, 32, 32)
    # What is predicted of a patch's first frame. hog: histograms of oriented gradients | pixels:
    # standardised over the patch.
    config.masking.target = "hog"
    config.masking.hog_bins = 9
    config.masking.hog_cell = 8  # rows and columns, pixels

    config.data.sampling = "seconds"
    config.data.crop = "resized"
    config.data.crop_area = (0.5, 1.0)
    config.data.filter = "bilinear"
    config.data.flip = True
    config.data.mean, config.data.std = (0.45,) * 3, (0.225,) * 3

    # Per node of 8 GPUs with 32 clips; rates are scaled by the nodes, all three of them.
    config.optim.base_lr = 1e-4
    config.optim.min_lr = 1e-6
    config.optim.warmup_lr = 1e-6
    config.optim.lr_per_videos = 32.0
    config.optim.warmup_epochs = 10.0
    config.optim.schedule = "peak_once"
    config.optim.betas = (0.9, 0.999)
    config.optim.decay_tables = True
    config.optim.clip_norm = 0.02
    config.train.epochs = 300
    # 16 nodes, as mmselfsup trains it; how many the authors had is not published.
    config.train.batch_videos = 512
    _use_probes(config)
    if architecture == "vit":
        _on_images(config)
    return config.lock()


def _on_images(config: ConfigDict) -> None:
    """What MaskFeat's released pretraining does otherwise where clips are images."""
    config.model.tubelet = (1, 16, 16)
    config.model.positions = "joint"
    config.model.class_token = True
    config.model.key_bias = True
    config.model.init = "slowfast"
    config.masking.encoder = ("tube", 0.4)
    config.masking.cell = (1, 16, 16)
    config.data.frames = 1
    config.data.stride = 1
    config.data.sampling = "dense"  # in frames: pictures have no rate
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    # Per node with 256 images; 8 nodes give the rate of 1.6e-3 at 2048.
    config.optim.base_lr = 2e-4
    config.optim.lr_per_videos = 256.0
    config.optim.warmup_epochs = 30.0
    config.train.batch_videos = 2048


def finetune_defaults(architecture: str = "vit") -> ConfigDict:
    """Returns a locked config with released fine-tuning values, on Kinetics-400.

    Args:
      architecture: "vit": VideoMAE's (ViT-B); VideoMAE V2 differs where its configs say so.
        "mvit": MaskFeat's (MViTv2-S 16x4).

    Source: VideoMAE (arXiv:2203.12602) and its released scripts (reference: videomae.md, section
    5); MaskFeat (arXiv:2112.09133) and its released configs (reference: maskfeat.md, 7 and 8.2).
    """
    config = _defaults("classify")
    if architecture == "mvit":
        use_mvit(config, MVIT_VARIANTS["S"])
    config.model.num_classes = 0  # 0: as many as the labels of the data have
    config.model.class_names = ()  # by label; (): those of the data, if it has names
    # mean (of all tokens, then a norm) | first (norm, then token 0). An encoder alone, opened for
    # its features, may be "normed" (norm, then the mean).
    config.model.pooling = "mean"
    config.model.head_dropout = 0.0
    config.model.head_scale = 0.001  # factor on the head's initial kernel
    config.model.encoder.drop_path = 0.1

    config.augment = ConfigDict()
    config.augment.erase = 0.25  # probability that a box of a clip is replaced by noise
    config.augment.mixup = 0.8  # a of Beta(a, a); 0: no mixup
    config.augment.cutmix = 1.0
    config.augment.mix_prob = 1.0
    config.augment.switch_prob = 0.5  # of cutmix, where both are on
    # Adjacent clips that share one draw, at most: the batch of one GPU in the released code.
    config.augment.mix_clips = 16
    config.augment.smoothing = 0.1  # of labels

    config.data.sampling = "window"
    config.data.crop = "resized"
    config.data.filter = "bilinear"
    config.data.randaugment = (7, 4, 0.5)
    config.data.repeats = 2
    # Off for sets in which left and right matter, such as Something-Something.
    config.data.flip = True

    config.optim.base_lr = 1e-3
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 5.0
    config.optim.betas = (0.9, 0.999)
    config.optim.layer_decay = 0.75
    config.train.epochs = 100
    config.train.batch_videos = 512
    if architecture == "mvit":
        _finetune_as_maskfeat(config)
    return config.lock()


def _finetune_as_maskfeat(config: ConfigDict) -> None:
    """What MaskFeat's released fine-tuning does otherwise than VideoMAE's."""
    config.augment.mix_clips = 4  # of one GPU, two of each video
    config.data.sampling = "seconds"
    config.data.views = (10, 1)
    config.data.short_side = 256
    config.data.mean, config.data.std = (0.45,) * 3, (0.225,) * 3
    config.data.randaugment = (7, 2, 0.5)
    # Per node of 8 GPUs with 16 videos; rates are scaled by the nodes, all three of them.
    config.optim.base_lr = 6e-4
    config.optim.min_lr = 1e-6
    config.optim.warmup_lr = 1e-6
    config.optim.lr_per_videos = 16.0
    config.optim.warmup_epochs = 20.0
    config.optim.schedule = "peak_once"
    config.optim.decay_tables = True
    config.optim.clip_norm = 5.0
    # 16 nodes, as the ports of OpenMMLab train it; the paper's number of nodes is not published.
    config.train.batch_videos = 256


def mae_st_finetune_defaults() -> ConfigDict:
    """Returns a locked config that fine-tunes what MAE-ST has pretrained (ViT-L, Kinetics-400).

    A classifier like any other (`finetune_defaults`), with the network and values of MAE-ST.

    Source: MAE-ST (arXiv:2205.09113) and PySlowFast's released config (reference: mae_st.md, 5.1).
    """
    config, pretraining = finetune_defaults().unlock(), mae_st_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    for field in ("positions", "class_token", "key_bias", "init"):
        config.model[field] = pretraining.model[field]
    config.model.head_dropout = 0.3
    for field in ("sampling", "mean", "std"):
        config.data[field] = pretraining.data[field]
    config.data.randaugment = (7, 2, 0.5)
    config.data.views = (7, 3)
    config.augment.mix_clips = 4  # 2 videos a GPU
    # Per node of 8 GPUs with 16 videos; rates are scaled by the nodes.
    config.optim.base_lr = 3e-4
    config.optim.lr_per_videos = 16.0
    config.optim.warmup_lr = 1e-8
    config.optim.min_lr = 1e-5
    config.optim.schedule = "peak_once"
    config.optim.decay_tables = True  # the reference says so of pretraining only
    config.optim.clip_norm = 5.0
    config.train.epochs = 50
    config.train.batch_videos = 256
    return config.lock()


def umt_finetune_defaults() -> ConfigDict:
    """Returns a locked config that fine-tunes what UMT has pretrained (ViT-B, Kinetics-710).

    A classifier like any other (`finetune_defaults`), on patches of a single frame. The scripts
    keep the checkpoint that is best in validation, and compute in float16.

    Source: Unmasked Teacher (arXiv:2303.16058) and its released scripts (reference: umt.md, A6).
    """
    config = finetune_defaults().unlock()
    config.model.tubelet = (1, 16, 16)
    config.model.sincos_grid = (8, 14, 14)
    config.data.frames = 8
    config.data.sampling = "sparse"
    config.data.views = (4, 3)
    config.augment.mix_clips = 32  # of one GPU: 16 videos, two clips of each
    config.optim.base_lr = 2e-4
    # The rates are of 256 clips, and a video gives two.
    config.optim.lr_per_videos = 128.0
    config.optim.warmup_epochs = 2.0
    config.train.epochs = 35
    config.train.batch_videos = 256  # 16 GPUs x 16
    return config.lock()


def distill_defaults() -> ConfigDict:
    """Returns a locked config that distils ViT-g into ViT-B on Kinetics-710 as VideoMAE V2 does.

    No code was released. The paper follows "a good teacher is patient and consistent"
    (arXiv:2106.05237) and leaves open what the fields of `distill` say. Source: VideoMAE V2
    (arXiv:2303.16727), appendix.
    """
    config = finetune_defaults().unlock()
    config.system = "distill"
    config.teacher = ConfigDict()
    config.teacher.weights = ""  # a fine-tuned classifier; docs/weights.md says what is read
    config.teacher.sha256 = ""  # of these; "": whatever it is, and the run writes it here
    config.teacher.encoder = stack(VIT_VARIANTS["g"])
    config.teacher.encoder.remat = "none"  # it is not differentiated
    config.teacher.tubelet = (2, 14, 14)
    config.teacher.pooling = "mean"
    config.distill = ConfigDict()
    config.distill.temperature = 3.0  # of both softmaxes
    config.distill.times_square = (
        True  # loss times temperature ** 2, which keeps its gradient's size
    )
    # same: the teacher sees the mixed clip that the student sees. clean: it sees the clips unmixed
    # and unerased, and its answers are mixed as labels would be.
    config.distill.teacher_view = "same"
    config.distill.label_weight = 0.0  # of the loss against the labels; the rest is the teacher's
    config.optim.clip_norm = 1.0
    config.train.batch_videos = 1024
    return config.lock()


def umt_defaults() -> ConfigDict:
    """Returns a locked config with UMT's released pretraining values (ViT-B, Kinetics-710).

    The released code computes in float16. Source: Unmasked Teacher (arXiv:2303.16058) and its
    released scripts (reference: umt.md, A1 to A5).
    """
    config = _defaults("umt")
    config.model.encoder.drop_path = 0.1
    config.model.tubelet = (1, 16, 16)

    config.teacher = ConfigDict()
    config.teacher.weights = ""  # an image tower of CLIP; docs/weights.md says what is read
    config.teacher.sha256 = ""  # of these; "": whatever it is, and the run writes it here
    config.teacher.encoder = stack(CLIP_VARIANTS["B/16"])
    config.teacher.encoder.remat = "none"  # it is not differentiated
    config.teacher.tubelet = (1, 16, 16)
    # Height and width that its frames are resized to; its patches on them are as many as the
    # student's.
    config.teacher.size = (224, 224)
    config.teacher.output = 512  # width of what it says of a patch
    config.teacher.interval = 1  # from one aligned layer to the next, counted from the last
    # Whose class token says where to look, counted from 1; 0: the last one's, as released.
    config.teacher.attention_layer = 0
    config.teacher.chunk = 0  # frames of each clip that it looks at together; 0: all

    config.align = ConfigDict()
    config.align.layers = 6  # last ones of student and teacher, each with a head of its own
    config.align.interval = 1  # between the student's
    config.align.normalize = "l2"  # l2 (unit vectors, of student and teacher) | none
    # l2 (2 - 2 cos, of unit vectors) | mse | smooth_l1, both averaged over the values.
    config.align.loss = "l2"
    config.align.weight = 1.0  # factor on the loss

    config.masking = ConfigDict()
    # attention (patches that the teacher's class token looks at are likely to stay) | tube |
    # random | frame | agnostic | block, ratio hidden. The released code runs with attention alone.
    config.masking.encoder = ("attention", 0.8)

    config.data.frames = 8
    config.data.sampling = "segments"
    config.data.flip = True
    config.train.epochs = 201  # "200" by name
    config.train.batch_videos = 2048
    _use_probes(config)
    return config.lock()


DEFAULTS = {
    "videomae": pretrain_defaults,
    "mae_st": mae_st_defaults,
    "classify": finetune_defaults,
    "distill": distill_defaults,
    "maskfeat": maskfeat_defaults,
    "umt": umt_defaults,
}
# Of each system; the functions of those with a choice take it as an argument.
ARCHITECTURES = {
    "videomae": ("vit",),
    "mae_st": ("vit",),
    "classify": ("vit", "mvit"),
    "distill": ("vit",),
    "maskfeat": ("mvit", "vit"),
    "umt": ("vit",),
}


def defaults_of(system: str, architecture: str) -> ConfigDict:
    """The locked defaults of a system with a network of some architecture.

    Raises:
      ConfigError: an unknown system, or an architecture that it does not have.
    """
    if system not in DEFAULTS:
        raise ConfigError(f"config.system={system!r}: choose one of {', '.join(sorted(DEFAULTS))}")
    good = ARCHITECTURES[system]
    if architecture not in good:
        raise ConfigError(
            f"config.model.architecture={architecture!r}: the system {system!r} has "
            f"{', '.join(map(repr, good))}"
        )
    return DEFAULTS[system](architecture) if len(good) > 1 else DEFAULTS[system]()
