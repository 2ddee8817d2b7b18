"""Python that finds the sources in place of the installed package says what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from source_tree import ROOT


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import edgellm; edgellm.load"],
        ["-m", "pytest", "--co", "-p", "no:cacheprovider", "tests/test_machine.py"],
    ],
)
def test_the_sources_alone_name_the_cure(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "without the compiled part of edgellm: run `pip install .`" in done.stdout + done.stderr
