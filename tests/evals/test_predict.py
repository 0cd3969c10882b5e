import re

import made
import numpy as np
import pytest
from PIL import Image

from vmae_jax.evals.contact_sheet import contact_sheet
from vmae_jax.tools import evaluate, predict


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    made.videos(folder, 4, bad=(1,))
    made.folder_of(folder / "weights")
    return folder


def test_prints_classes_as_tested_and_draws_the_videos(place, tmp_path, capsys):
    weights = f"--weights={place / 'weights'}"
    flags = [weights, f"--out={tmp_path / 'seen.png'}", "--top=2", "--views=2,3"]
    videos = [str(place / f"v{i}.mp4") for i in (3, 1, 0)]
    assert predict.main([*videos, *flags]) == 1  # one cannot be read
    printed = capsys.readouterr()
    assert "cannot be read" in printed.err
    said = re.findall(r"v(\d)\.mp4\n +([\d.]+)%  (\S+)\n +([\d.]+)%  (\S+)", printed.out)
    assert [video for video, *_ in said] == ["3", "0"]
    listing = f"--manifest={place / 'list.txt'}"
    assert evaluate.main([weights, listing, f"--out={tmp_path}", "--views=2,3"]) == 0
    lines = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
    for video, share, label, *_ in said:
        assert float(lines[int(video)].split(",")[3]) == pytest.approx(float(share) / 100, abs=6e-5)
        # Without classes.txt beside them and in the weights, classes are numbers.
        assert made.CLASSES[int(label)] == lines[int(video)].split(",")[2]
    picture = np.asarray(Image.open(tmp_path / "seen.png"))
    assert picture.shape[0] > 2 * 112 and picture.std() > 10


def test_sheet_shows_frames_in_order_beside_bars_of_the_shares():
    shades = np.array([10, 90, 170], np.uint8)[:, None, None, None]
    frames = np.broadcast_to(shades, (3, 56, 56, 3))
    picture = contact_sheet([("a", frames, [("run", 0.5), ("sit", 0.25)])])
    middle = [picture[80, 4 + 56 + 116 * t, 0] for t in range(3)]
    assert middle == [10, 90, 170]
    bars = (picture == (198, 219, 239)).all(axis=-1)
    widths = [np.ptp(np.flatnonzero(bars[row])) for row in (23, 41)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=2)
