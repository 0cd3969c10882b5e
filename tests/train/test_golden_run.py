"""A run that an earlier version began and stored goes on with this one.

`golden_run.tar.xz` is a workdir of commit 76c532c, before checkpoints knew `decode_failures` and
configs `data.resize`, made on one device beside 12 videos of `vmae_jax.data.synthetic`:

    python -m vmae_jax.main --config=configs/demo.py:smoke --workdir=golden \
        --config.data.manifest=videos/train.csv --config.data.size="(16,16)" \
        --config.data.frames=4 --config.data.mean="(0.5,)" --config.data.std="(0.25,)" \
        --config.data.workers=0 --config.model.channels=1 \
        --config.model.encoder.width=8 --config.model.encoder.heads=2 \
        --config.model.encoder.depth=1 --config.model.decoder.width=8 \
        --config.model.decoder.heads=2 --config.model.decoder.depth=1 \
        --config.train.batch_videos=4 --config.train.log_every=1 --config.train.picture_every=0 \
        --config.train.steps=4 --config.train.stop_after=2
"""

import json
import pathlib
import tarfile

import numpy as np

from vmae_jax import config as config_lib
from vmae_jax.data.synthetic import generate
from vmae_jax.main import run

STORED = pathlib.Path(__file__).parent / "golden_run.tar.xz"
# What that commit logged for all four steps in one go.
LOSSES = [0.3703201115131378, 0.5088714361190796, 0.4475228786468506, 0.3350684642791748]
GRAD_NORMS = [0.4318818747997284, 0.5295596122741699, 0.38243556022644043, 0.33282923698425293]


def test_golden_run_goes_on_with_the_losses_of_its_own_version(tmp_path, caplog):
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path / "golden", filter="data")
    generate(tmp_path / "videos", num_videos=12)
    values = json.loads((tmp_path / "golden" / "config.json").read_text())
    with caplog.at_level("INFO", logger="vmae_jax"):
        config = config_lib.from_mapping(values)
        config.data.manifest = str(tmp_path / "videos" / "train.csv")
        config.train.stop_after = 0
        outcome = run(config, str(tmp_path / "golden"))
    assert "Resumed from the checkpoint of step 2" in caplog.text
    assert outcome.step == 4 and outcome.last_row["decode_failures"] == 0
    lines = (tmp_path / "golden" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [3, 4]
    # Eight devices here, one there: sums in another order.
    np.testing.assert_allclose([row["loss"] for row in rows], LOSSES[2:], rtol=1e-5)
    np.testing.assert_allclose([row["grad_norm"] for row in rows], GRAD_NORMS[2:], rtol=1e-4)
