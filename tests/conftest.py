"""Fixtures of all pytest suites: where the repository and the built program are, and how to start ranks."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo():
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def build_dir():
    """The build folder: MEGAC_BUILD (set by run.sh), else build/."""
    return Path(os.environ.get("MEGAC_BUILD", ROOT / "build")).resolve()


@pytest.fixture(scope="session")
def megac(build_dir):
    """The path of the built program."""
    program = build_dir / "megac"
    if not program.is_file():
        pytest.fail(f"{program} is missing: build first (ninja -C build)")
    return program


@pytest.fixture(scope="session")
def ompi_env():
    """The environment with what OpenMPI needs (launch/ompi_env.sh)."""
    command = ["bash", "-c", f'. "{ROOT}/launch/ompi_env.sh" && env -0']
    rows = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")
    return dict(os.fsdecode(row).split("=", 1) for row in rows if row)
