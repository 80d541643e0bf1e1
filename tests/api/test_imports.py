"""Importing crux changes nothing but sys.modules, and loads no library of torch's size."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
PACKAGES = (
    "crux", "crux.sae", "crux.sae.reading", "crux.sae.geometry", "crux.sae.llm", "crux.toy", "crux.llc", "crux.degeneracy",
)  # fmt: skip

PROGRAM = f"""
import logging, os, signal, sys, warnings
def state():
    return (dict(os.environ), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], list(logging.root.handlers),
            logging.root.level, sorted(logging.root.manager.loggerDict), list(warnings.filters), list(sys.argv), sys.excepthook)
before = state()
import {", ".join(PACKAGES)}
assert state() == before
heavy = {{"torch", "lightning", "mlflow", "hydra", "omegaconf", "numpy", "pandas", "matplotlib", "rich"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "load_run" in dir(crux) and "estimate_llc" in dir(crux.llc)
"""


def test_importing_has_no_side_effects() -> None:
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_export_exists_is_documented_and_hides_no_module(name: str) -> None:
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__), "importing the module would replace the export"
    assert dir(package) == sorted(package.__all__)
    for export in package.__all__:
        value = getattr(package, export)
        assert value.__name__ == export
        assert (value.__doc__ or "").strip(), f"{name}.{export} has no docstring"
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing
