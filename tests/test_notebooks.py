"""The notebooks: kept without outputs, and run from top to bottom at smoke size."""

import ast
import base64
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
PICTURES = {"look_inside": 4, "finetune_your_clips": 3, "features_and_neighbours": 2}


def sources(name):
    """The code cells of a notebook."""
    cells = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_all_notebooks_are_known_here():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_holds_plain_python_and_no_outputs(name):
    for cell in sources(name):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))
    # One way to install and one to begin, in all of them.
    first, second = ("".join(cell["source"]) for cell in sources(name)[:2])
    assert first == "".join(sources("look_inside")[0]["source"])
    assert "VMAE_SMOKE" in second and f'"{name}"' in second


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra: notebooks")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra: notebooks")
    monkeypatch.setenv("VMAE_SMOKE", "1")
    monkeypatch.setenv("VMAE_NOTEBOOK_RUNS", str(tmp_path))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    pictures = [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == PICTURES[name]
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # something is drawn
