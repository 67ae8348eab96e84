"""Methods learn and read on a device that is as strict as a graphics card"""
import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("pretend_checks.py")


def test_on_a_pretended_device_all_goes_on():
    "In a process of its own: torch makes room for a device before its first gradient, and cannot forget one"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
