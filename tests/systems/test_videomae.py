import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax import chips, systems
from vmae_jax import config as config_lib
from vmae_jax.ops import masking
from vmae_jax.ops.losses import masked_mse, pixel_targets
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.preprocess import normalise, unit_range
from vmae_jax.ops.tokens import gather
from vmae_jax.systems.autoencoders import autoencoder


def small_config():
    config = config_lib.pretrain_defaults()
    for stack in ("encoder", "decoder"):
        config.model[stack].update(width=12, depth=1, heads=2)
    config.model.tubelet = (2, 4, 4)
    config.model.dtype = "float32"
    config.data.update(frames=4, size=(16, 16))
    config.masking.decoder = ("running_cell", 0.5)
    return config


def test_planes_inside_the_step_change_neither_loss_nor_gradients():
    # The same step in the order of pixels, in which parameters are kept.
    config = small_config()
    system = systems.build(config)
    network = autoencoder(config, chips.local()).network
    params = jax.jit(system.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    video = jax.random.randint(jax.random.key(2), (2, 4, 16, 16, 3), 0, 256).astype(jnp.uint8)

    def through_the_system(params):
        batch = system.targets(None, {"video": video}, keys)
        loss, _ = system.loss(params, batch, keys, False)
        return loss.total / loss.weight

    def in_pixels(params):
        masks = masking.pretraining_masks(
            keys, grid=(2, 4, 4), encoder=config.masking.encoder, decoder=config.masking.decoder
        )
        patches = patchify(video, (2, 4, 4))
        visible = normalise(
            gather(patches, masks.visible_idx), mean=config.data.mean, std=config.data.std
        )
        hidden = unit_range(gather(patches, masks.target_idx))
        pred = network.apply(params, visible, masks.visible_idx, masks.target_idx, grid=(2, 4, 4))
        target = pixel_targets(hidden, channels=3, normalize=True)
        loss = masked_mse(pred, target, masks.weight)
        return loss.total / loss.weight

    ours, grads = jax.jit(jax.value_and_grad(through_the_system))(params)
    wanted, wanted_grads = jax.jit(jax.value_and_grad(in_pixels))(params)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, wanted_grads)
