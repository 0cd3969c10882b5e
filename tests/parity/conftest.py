"""Collects golden cases as parameters of the tests here and prints how close each one came."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules beside the tests

from golden import find_cases, tests_of

KEPT = Path(__file__).parent / "cases"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_test" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--golden")
    folder = Path(given) if given else KEPT
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden={given}: no such folder")
    found = [(path, part) for path in find_cases(folder) for part in tests_of(path)]
    if not found:
        raise pytest.UsageError(f"no golden cases in {folder}")
    ids = [path.name + (f"-{part}" if part else "") for path, part in found]
    metafunc.parametrize("golden_test", found, ids=ids)


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    lines = [value for r in reports for name, value in r.user_properties if name == "parity"]
    if lines:
        terminalreporter.section("parity: worst error as a share of its tolerance")
        for line in sorted(lines):
            terminalreporter.write_line(line)
