"""Names of the released VideoMAE and VideoMAE V2 checkpoints (the two share them).

Position tables are constants in both and never in a checkpoint, except for the learned table of a
fine-tuning model. Key biases do not exist: the released code adds a constant zero.
"""

from einops import rearrange

from vmae_jax.convert.engine import SAME, TRANSPOSED, Layout, Rule, Table
from vmae_jax.ops.patches import Tubelet

# A compiled, distributed or Hub-hosted model wraps the names, in any order.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")


def pretrain_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A pretraining checkpoint <-> `MaskedAutoencoder`.

    Args:
      tubelet: (frames, rows, columns) of a patch; undoes the flattening of the patch embedding.
      channels: of the input video.
    """
    return Table(
        name="videomae pretraining",
        rules=(
            *_encoder_rules("encoder.", tubelet, channels),
            Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", TRANSPOSED),
            Rule("mask_token", "mask_token", _MASK_TOKEN),
            *_block_rules("decoder.", "decoder/"),
            *_norm_rules("decoder.norm", "decoder/norm"),
            *_linear_rules("decoder.head", "decoder/head"),
        ),
        prefixes=PREFIXES,
    )


def finetune_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A fine-tuned checkpoint <-> `Classifier`."""
    return Table(
        name="videomae fine-tuned",
        rules=(
            *_encoder_rules("", tubelet, channels),
            Rule("pos_embed", "encoder/pos_embed", _POSITIONS),
            *_norm_rules("fc_norm", "fc_norm"),
            *_linear_rules("head", "head"),
        ),
        prefixes=PREFIXES,
    )


def pretrain_to_finetune_table(tubelet: Tubelet, channels: int = 3) -> Table:
    """A pretraining checkpoint -> the encoder of a `Classifier` with mean pooling.

    Source: the released fine-tuning script (drops the encoder's norm, starts the head anew).
    """
    decoder = "the classifier has no decoder"
    return Table(
        name="videomae pretraining, encoder only",
        rules=_encoder_rules("encoder.", tubelet, channels),
        ignored=(
            (r"decoder\..*", decoder),
            (r"encoder_to_decoder\.weight|mask_token", decoder),
            (r"encoder\.norm\..*", "mean pooling normalises the pooled vector instead"),
        ),
        fresh=((r"(fc_norm|head)/.*", "a pretraining checkpoint has no classifier"),),
        prefixes=PREFIXES,
    )


def _encoder_rules(prefix: str, tubelet: Tubelet, channels: int) -> tuple[Rule, ...]:
    return (
        Rule(
            f"{prefix}patch_embed.proj.weight",
            "encoder/patch_embed/kernel",
            _patch_embed(tubelet, channels),
        ),
        Rule(f"{prefix}patch_embed.proj.bias", "encoder/patch_embed/bias"),
        *_block_rules(prefix, "encoder/"),
        *_norm_rules(f"{prefix}norm", "encoder/norm"),
    )


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    t, o = f"{theirs}blocks.{{i}}.", f"{ours}blocks/"
    return (
        *_norm_rules(f"{t}norm1", f"{o}norm1"),
        Rule(f"{t}attn.qkv.weight", f"{o}attn/qkv/kernel", TRANSPOSED),
        Rule(f"{t}attn.q_bias", f"{o}attn/q_bias"),
        Rule(f"{t}attn.v_bias", f"{o}attn/v_bias"),
        Rule(f"{t}attn.scale", f"{o}attn/scale", _HEAD_SCALE),
        *_linear_rules(f"{t}attn.proj", f"{o}attn/proj"),
        *_norm_rules(f"{t}norm2", f"{o}norm2"),
        *_linear_rules(f"{t}mlp.fc1", f"{o}mlp/fc1"),
        *_linear_rules(f"{t}mlp.fc2", f"{o}mlp/fc2"),
        Rule(f"{t}gamma_1", f"{o}gamma_1"),
        Rule(f"{t}gamma_2", f"{o}gamma_2"),
    )


def _norm_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias", SAME)


def _linear_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def _patch_embed(tubelet: Tubelet, channels: int) -> Layout:
    frames, rows, columns = tubelet

    def to_ours(weight):
        if weight.shape[1:] != (channels, *tubelet):
            raise ValueError(
                f"expected a convolution of {channels} channels over {tuple(tubelet)} "
                "(frames, rows, columns)"
            )
        return rearrange(weight, "d c t h w -> (t h w c) d")

    def to_theirs(kernel):
        return rearrange(
            kernel, "(t h w c) d -> d c t h w", t=frames, h=rows, w=columns, c=channels
        )

    return Layout(to_ours, to_theirs)


_MASK_TOKEN = Layout(lambda x: rearrange(x, "1 1 d -> d"), lambda x: rearrange(x, "d -> 1 1 d"))
_HEAD_SCALE = Layout(
    lambda x: rearrange(x, "heads 1 1 -> heads"), lambda x: rearrange(x, "heads -> heads 1 1")
)
_POSITIONS = Layout(lambda x: rearrange(x, "1 n d -> n d"), lambda x: rearrange(x, "n d -> 1 n d"))
