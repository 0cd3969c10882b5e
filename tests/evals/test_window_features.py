import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.data.video import VideoError
from vmae_jax.data.windows import End, Window
from vmae_jax.evals import window_features as features
from vmae_jax.evals.window_features import FeatureError, make_features
from vmae_jax.systems.base import Encoder

# Tokens of a clip: 2 slots of 1 x 3, width 2; those of layer 1 are these numbers.
TOKENS = np.arange(12, dtype=np.float32).reshape(1, 6, 2)


def encoder():
    return Encoder(
        depth=2,
        width=lambda layer: 2,
        grid=lambda layer: (2, 1, 3),
        tokens=lambda params, batch, layer: jnp.asarray(TOKENS) * layer,
        pooled=lambda params, batch: jnp.full((1, 5), params),
    )


@pytest.mark.parametrize(
    ("pooling", "layer", "expected"),
    [
        ("mean", 1, [5, 6]),
        ("mean", None, [10, 12]),
        ("slot", 1, [[2, 3], [8, 9]]),  # means of 0, 2, 4 and so on
        ("tokens", 1, TOKENS[0]),
        ("head", None, [7] * 5),
    ],
)
def test_pooling(pooling, layer, expected):
    found = make_features(encoder(), pooling=pooling, layer=layer, dtype="float16")(7.0, {})
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(found[0], expected)


def test_an_unknown_pooling_names_the_good_ones():
    with pytest.raises(FeatureError, match="'cls'; choose one of mean, slot, tokens, head"):
        make_features(encoder(), pooling="cls")


class Kept(dict):
    """Features in memory: name -> (rows, end)."""

    def save(self, name, recorded, end):
        rows = np.frombuffer(b"".join(recorded.blocks()), recorded.dtype)
        self[name] = rows.reshape(recorded.shape)[:, 0].tolist()


def window(number):
    return Window((np.full((1, 1, 1), number, np.uint8),), np.array([number]), False)


def end(error=None):
    return End(times=np.zeros(99), error=error)


def test_windows_of_mixed_videos_share_batches_and_return_to_their_own():
    broken = VideoError("c", "is damaged")
    events = [(0, window(1)), (1, window(11)), (0, window(2)), (2, window(21)), (1, window(12))]
    events += [(0, end()), (2, end(broken)), (1, window(13)), (3, end(broken)), (1, end())]
    batches = []

    def forward(video):
        batches.append(video[:, 0, 0, 0, 0].tolist())
        return video.astype(np.float32).reshape(len(video), 1) * 2

    kept = Kept()
    names = dict(enumerate("abcd"))
    seen = []

    def on_batch(done, windows):
        seen.append((windows, len(done.windows), len(done.failures)))

    done = features.extract(forward, events, kept, names=names, batch=4, on_batch=on_batch)
    assert seen == [(4, 0, 0), (6, 2, 2)]
    assert batches == [[1, 11, 2, 21], [12, 13, 0, 0]]  # filled up with black
    assert kept == {"a": [2, 4], "b": [22, 24, 26]}
    assert done.windows == {"a": 2, "b": 3}
    assert done.failures == {"c": "is damaged", "d": "is damaged"}


def test_features_beyond_what_is_held_go_through_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_HELD_BYTES", 100)  # of 320 and a row of 32
    recorded = features.Recorded()
    rows = np.random.default_rng(0).normal(size=(10, 2, 4)).astype(np.float32)
    for i, row in enumerate(rows):
        recorded.add(Window((), np.array([i, i + 3]), i == 9), row)
    files = features.NpzFiles(str(tmp_path))
    files.save("x/y.mp4", recorded, End(3, np.arange(20) / 4))
    with np.load(tmp_path / "x" / "y.mp4.npz") as found:
        np.testing.assert_array_equal(found["features"], rows)
        assert found["start_s"].tolist() == [i / 4 for i in range(10)]
        assert found["end_s"].tolist() == [(i + 3) / 4 for i in range(10)]
        assert found["padded"].tolist() == [False] * 9 + [True] and found["label"] == 3
    assert files.finished(["x/y.mp4", "z.mp4"]) == {"x/y.mp4"}
