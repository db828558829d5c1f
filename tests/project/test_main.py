"""`python -m bbjax`: what is installed, and where to begin."""

import importlib.metadata
import runpy

import jax

import bbjax as bb


def test_says_versions_devices_and_first_steps(capsys):
    runpy.run_module("bbjax", run_name="__main__")
    shown = capsys.readouterr().out
    first, second = shown.splitlines()[:2]
    assert f"bbjax {bb.__version__}" in first
    for name in ("jax", "flax", "optax"):
        assert f"{name} {importlib.metadata.version(name)}" in first
    assert f"{jax.device_count()} x" in second and "cpu" in second
    for step in ("trace", "transform", "value_and_grad"):
        assert f"bb.{step}(" in shown and hasattr(bb, step)
    assert "python -m bbjax.demo" in shown
