import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vmae_jax.models.functional import functional
from vmae_jax.models.layers import Mlp, StackOptions
from vmae_jax.models.stack import build_stack, run_stack
from vmae_jax.variants import StackSpec

SPEC = StackSpec(8, 4, 2)
TAPS = (1, 3)
UNROLLED = StackOptions(scan=False, remat="none")


@functools.cache
def network():
    return functional(lambda rngs: build_stack(SPEC, UNROLLED, rngs=rngs))


@functools.cache
def made():
    key = jax.random.key(0)
    params = jax.jit(network().init)(key)
    # A block behind the last tap that would be seen if it were run.
    spoilt = jax.tree.map(lambda leaf: leaf.at[TAPS[-1] :].set(jnp.nan), params)
    return spoilt, jax.random.normal(key, (2, 3, SPEC.width))


def run(params, x, options=UNROLLED, **kwargs):
    return run_stack(network().module(params), x, options, **kwargs)


def test_taps_give_what_the_stack_cut_there_gives_and_its_gradients():
    weights = jax.random.normal(jax.random.key(1), (len(TAPS), *made()[1].shape))
    scanned = StackOptions(remat="full")

    def cut(params, x):
        return jnp.stack([run(params, x, layers=tap) for tap in TAPS])

    def gradients(outputs_of):
        def loss(params, x):
            outputs = outputs_of(params, x)
            return (weights * outputs).sum(), outputs

        return jax.grad(loss, (0, 1), has_aux=True)(*made())

    ways = functools.partial(run, taps=TAPS), functools.partial(run, options=scanned, taps=TAPS)
    expected, *ours = jax.jit(lambda: [gradients(way) for way in (cut, *ways)])()
    for one in ours:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, expected)


def test_outputs_are_written_and_not_kept_for_the_backward_pass():
    params, x = made()
    options = StackOptions(remat="full")

    def kept(**kwargs):
        """Numbers of the size of tokens that stay between forward and backward pass."""
        _, backward = jax.eval_shape(
            lambda params: jax.vjp(lambda p: run(p, x, options, **kwargs), params), params
        )
        shapes = [leaf.shape for leaf in jax.tree.leaves(backward)]
        return sum(np.prod(shape) for shape in shapes if shape[-x.ndim :] == x.shape)

    assert kept(taps=TAPS) == kept(layers=TAPS[-1]) == TAPS[-1] * x.size  # inputs of the blocks


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"taps": (3, 2)}, "ascend"),
        ({"taps": (2, 2)}, "ascend"),
        ({"taps": (2,), "layers": 3}, "without layers"),
        ({"taps": (0, 2)}, "layer 0"),
        ({"taps": (2, 6)}, "layer 6"),
    ],
)
def test_taps_that_are_none_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        run(*made(), **kwargs)


def test_quick_gelu_is_the_one_with_a_sigmoid():
    mlp = Mlp(4, 6, StackOptions(gelu="quick"), rngs=nnx.Rngs(0))
    x = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)
    hidden = x @ mlp.fc1.kernel[...]
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    np.testing.assert_allclose(mlp(x), hidden @ mlp.fc2.kernel[...], atol=1e-6)
