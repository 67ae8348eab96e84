"""Methods learn and read, and experiments run, on a device that is as strict as a graphics card"""
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("file, which", [("pretend_checks.py", ""), ("pretend_experiments.py", "default")])
def test_on_a_pretended_device_all_goes_on(file, which):
    "In a process of its own: torch makes room for a device before its first gradient, and cannot forget one"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / file, "-k", which]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
