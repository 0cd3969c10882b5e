"""Options and fixtures of all tests."""

import os
from pathlib import Path

import pytest

# Before JAX starts: several fake devices, so that sharded programs run on any machine.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Tests compile many tiny programs and run each once: optimising them would take most of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        help="folder of golden cases for tests/parity (default: the small ones kept there)",
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared reference data; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("VMAE_SHARED", "../shared"))
    if not path.is_dir():
        pytest.skip(f"no shared reference data at {path} (set VMAE_SHARED)")
    return path.resolve()
