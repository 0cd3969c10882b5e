"""What the attention of all layers comes to together."""

from collections.abc import Iterable

import numpy as np


def rollout(layers: Iterable[np.ndarray]) -> np.ndarray:
    """How much of each token that enters the network is in each token that leaves it.

    Heads are averaged, half of every token is taken to go past each layer's attention by the
    residual connection, and the layers are multiplied. What the MLPs do is not seen.

    Args:
      layers: float [B, heads, N, N] of each layer, the first one first (`Encoder.attention`); they
        are used one at a time, so give a generator where they are large.

    Returns:
      float32 [B, N, N], a row for each token that leaves; rows sum to one.

    Raises:
      ValueError: no layers.

    Source: Abnar and Zuidema, arXiv:2005.00928, sec. 3.
    """
    flow = None
    for weights in layers:
        mixed = np.asarray(weights, np.float32).mean(axis=1)
        mixed = 0.5 * mixed + 0.5 * np.eye(mixed.shape[-1], dtype=np.float32)
        flow = mixed if flow is None else mixed @ flow
    if flow is None:
        raise ValueError("no layers to roll out")
    return flow
