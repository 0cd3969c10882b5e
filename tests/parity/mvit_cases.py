"""Runs golden cases of PySlowFast's multiscale transformers through our code, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from golden import Case, Comparison
from videomae_cases import compare, imported

from vmae_jax.convert.mvit import mvit_table
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mvit import MViTClassifier
from vmae_jax.ops import losses
from vmae_jax.variants import MViTSpec

OPTIONS = StackOptions(attention="xla_f32", remat="none")  # remat changes no number


def finetune(case: Case, result: Comparison) -> None:
    config, inputs = case.config, case.arrays("inputs")
    clip = rearrange(inputs["clip"], "b c t h w -> b t h w c")
    pooling = "mean" if config["MVIT.USE_MEAN_POOLING"] else "first"
    net = functional(
        lambda rngs: MViTClassifier(
            spec_of(config),
            OPTIONS,
            num_classes=config["MODEL.NUM_CLASSES"],
            pooling=pooling,
            rngs=rngs,
            **fields_of(config),
        )
    )
    table = mvit_table(pooling)
    params = imported(case.arrays("weights"), table, net)

    def run(params):
        module = net.module(params)
        pooled = module.features(jnp.asarray(clip))
        logits = module.logits(pooled)
        total, weight = losses.soft_target_cross_entropy(logits, inputs["soft_labels"])
        outputs = {"pooled": pooled, "logits": logits, "loss_soft": total / weight}
        outputs["probs"] = jax.nn.softmax(logits)
        for name in case.meta["outputs"]:
            if name.startswith("block_"):
                layer = int(name.removeprefix("block_")) + 1
                outputs[name] = module.encoder(jnp.asarray(clip), layer=layer)
        return outputs["loss_soft"], outputs

    compare(case, result, run, params, table)


def spec_of(config) -> MViTSpec:
    """The size that a configuration of PySlowFast describes."""
    strides = {number: tuple(stride) for number, *stride in config["MVIT.POOL_Q_STRIDE"]}
    firsts = [0, *(number for number, _ in config["MVIT.DIM_MUL"])]
    return MViTSpec(
        width=config["MVIT.EMBED_DIM"],
        depths=tuple(np.diff([*firsts, config["MVIT.DEPTH"]]).tolist()),
        heads=config["MVIT.NUM_HEADS"],
        strides=tuple(strides[number] for number in firsts),
        kv_stride=tuple(config["MVIT.POOL_KV_STRIDE_ADAPTIVE"]),
        stem_kernel=tuple(config["MVIT.PATCH_KERNEL"]),
        pool_kernel=tuple(config["MVIT.POOL_KVQ_KERNEL"]),
        grow_in="attention" if config.get("MVIT.DIM_MUL_IN_ATT") else "mlp",
    )


def fields_of(config) -> dict:
    """What else `MViT` is told."""
    tubelet = tuple(config["MVIT.PATCH_STRIDE"])
    size = (config["DATA.NUM_FRAMES"], *[config["DATA.TRAIN_CROP_SIZE"]] * 2)
    kind = "separable" if config["MVIT.SEP_POS_EMBED"] else "joint"
    return {
        "grid": tuple(side // step for side, step in zip(size, tubelet, strict=True)),
        "tubelet": tubelet,
        "class_token": config["MVIT.CLS_EMBED_ON"],
        "positions": kind if config["MVIT.USE_ABS_POS"] else "none",
    }
