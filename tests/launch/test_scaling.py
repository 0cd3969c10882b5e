"""docs/scaling.md: its commands are accepted, and the columns and fields it names exist."""

import re
import shlex
from pathlib import Path

import pytest

from vmae_jax.config import pretrain_defaults

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = re.compile(r"launch/\w+\.(sh|sbatch)")
TEXT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def _launches():
    """Commands in code blocks that start a script of launch/, each as one line."""
    blocks = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [words for words in commands if any(_SCRIPT.fullmatch(word) for word in words)]


def _of_script(words):
    """Script and arguments, with --dry_run in its place."""
    (start,) = (i for i, word in enumerate(words) if _SCRIPT.fullmatch(word))
    script, arguments = words[start].removeprefix("launch/"), words[start + 1 :]
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return script, [*arguments[:place], "--dry_run", *arguments[place:]]


@pytest.mark.parametrize("words", _launches(), ids=lambda words: " ".join(words[:2]))
def test_commands_are_accepted(launch, words):
    script, arguments = _of_script(words)
    result = launch(script, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_every_script_is_in_the_walk():
    shown = {_of_script(words)[0] for words in _launches()}
    assert shown == {"tpu.sh", "gke.sh", "slurm.sbatch"}
    for name in ("local.sh", "queued_resource.sh", "Dockerfile"):
        assert f"launch/{name}" in TEXT


def test_fields_exist():
    named = set(re.findall(r"--config\.([a-z_.]+)=", TEXT))
    named |= set(re.findall(r"`((?:data|optim|train|mesh|model)\.[a-z_.]+)", TEXT))
    assert "mesh.fsdp" in named and "train.batch_videos" in named
    for field in named:
        value = pretrain_defaults()
        for part in field.split("."):
            assert part in value, field
            value = value[part]


def test_columns_exist():
    table = TEXT.split("| column | look for |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line]
    columns = set(re.findall(r"`(\w+)`", " ".join(cells)))
    sources = "".join(path.read_text() for path in (ROOT / "vmae_jax" / "train").glob("*.py"))
    assert "data_wait" in columns
    assert [name for name in columns if f'"{name}"' not in sources] == []
