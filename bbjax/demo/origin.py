"""Where numbers come from: the commit, the versions and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import bbjax as bb

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "matplotlib")
ROOT = Path(bb.__file__).resolve().parents[1]


def commit(root: Path = ROOT) -> str | None:
    """The commit of the library, with a "+" if its files differ from the commit.

    Args:
        root: folder that holds the package.

    Returns:
        Short hash; None if `root` is not the top of a git checkout.

    Example:
        >>> commit(Path("/")) is None
        True
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # An installed package may lie inside the checkout of another project.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        changed = git("status", "--porcelain", "--", "bbjax")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def origin() -> dict[str, Any]:
    """Commit, versions and machine, as JSON.

    Example:
        >>> sorted(origin())
        ['commit', 'machine', 'versions']
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "commit": commit(),
        "versions": {"bbjax": bb.__version__} | versions,
        "machine": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
        },
    }
