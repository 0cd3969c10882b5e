"""What makes a classifier of any encoder: pooling of its tokens, then a linear head."""

import jax
import jax.numpy as jnp
from flax import nnx

from vmae_jax.models import init
from vmae_jax.models.layers import LayerNorm, Linear, StackOptions
from vmae_jax.ops.keys import stream
from vmae_jax.variants import POOLINGS


class PooledClassifier(nnx.Module):
    """Encoder over all tokens, pooling, linear head.

    A base class: those of a kind of network say what they are built of.

    Args:
      encoder: makes tokens [B, K + N, D] of its input; K = 1 with a class token in front. Ends with
        a norm exactly where pooling is not "mean".
      width: D.
      options: of the encoder's blocks; eps, bias_init and dtype are those of norm and head too.
      pooling: "mean": mean over the patches' tokens, then `fc_norm`; "first": token 0, a patch like
        any other where there is no class token; "normed": the mean as it is.
      num_classes: 0 for no head: pooled features are returned.
      init_scale: factor on what the head's kernel and bias begin with.
      head_dropout: rate of the dropout before the head.
      pooled_eps: epsilon of `fc_norm`; None: that of the blocks. transformers' port has its own.

    Source: the released fine-tuning models of VideoMAE, VideoMAE V2, MAE-ST and MaskFeat.
    """

    def __init__(
        self,
        encoder: nnx.Module,
        width: int,
        options: StackOptions,
        *,
        num_classes: int,
        pooling: str,
        init_scale: float,
        head_dropout: float,
        pooled_eps: float | None = None,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r}; choose one of {', '.join(POOLINGS)}")
        if not 0.0 <= head_dropout < 1.0:
            raise ValueError(f"head_dropout={head_dropout} must lie in [0, 1)")
        self.encoder = encoder
        if pooling == "mean":
            pooled_eps = options.eps if pooled_eps is None else pooled_eps
            self.fc_norm = LayerNorm(
                width, eps=pooled_eps, dtype=options.dtype, bias=options.bias_init
            )
        self.has_head = num_classes > 0
        if self.has_head:
            self.head = Linear(
                width,
                num_classes,
                kernel_init=lambda key, shape: init_scale * init.normal_002(key, shape),
                bias_init=init.constant(init_scale * options.bias_init),
                dtype=options.dtype,
                rngs=rngs,
            )
        self.pooling, self.head_dropout = pooling, head_dropout

    def __call__(
        self, inputs: jax.Array, *, keys: jax.Array | None = None, **static: object
    ) -> jax.Array:
        """Logits [B, num_classes] in float32.

        Args:
          inputs: what the encoder takes.
          keys: typed PRNG keys [B] for stochastic depth and dropout; None: evaluation mode.
          static: what else the encoder is told.
        """
        pooled = self.features(inputs, keys=stream(keys, 0), **static)
        return self.logits(pooled, keys=stream(keys, 1))

    @jax.named_scope("encoder")
    def features(
        self, inputs: jax.Array, *, keys: jax.Array | None = None, **static: object
    ) -> jax.Array:
        """Pooled features [B, D], the input of the head; arguments as above."""
        tokens = self.encoder(inputs, keys=keys, **static)
        if self.pooling == "first":
            return tokens[:, 0]
        patch_tokens = tokens[:, 1:] if self.encoder.class_token else tokens
        pooled = patch_tokens.astype(jnp.float32).mean(axis=1)
        return self.fc_norm(pooled) if self.pooling == "mean" else pooled

    def logits(self, pooled: jax.Array, *, keys: jax.Array | None = None) -> jax.Array:
        """Float32 logits [B, num_classes] of pooled features [B, D]; `keys` switch dropout on."""
        pooled = self._dropout(pooled, keys)
        logits = self.head(pooled) if self.has_head else pooled
        return logits.astype(jnp.float32)

    def _dropout(self, pooled, keys):
        if keys is None or self.head_dropout == 0.0:
            return pooled
        keep = 1.0 - self.head_dropout
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, pooled.shape[1:]))(keys)
        return jnp.where(kept, pooled / keep, 0.0).astype(pooled.dtype)
