"""The test environment: eight virtual CPU devices, strict types, seeded tests.

Silent broadcasting and silent promotion are how mask code goes wrong, so both
raise here. Tests of code that promotes or broadcasts by itself (Optax's Adam does,
and some model libraries) take the `lenient` fixture.
"""

import os
from importlib.metadata import version

_FLAGS = {"--xla_force_host_platform_device_count": "8"}
if not os.environ.get("BBJAX_OPTIMIZED"):
    # Tests compile much and compute little. XLA makes the same program, loop for loop;
    # leaving out LLVM's optimizations and the newer of two ways to write the loops
    # takes a fourth of the time. `make test-optimized` runs some as users compile.
    _FLAGS["--xla_backend_optimization_level"] = "0"
    if version("jaxlib").startswith("0.10."):  # later ones know the newer way alone
        _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
_given = os.environ.get("XLA_FLAGS", "")
_own = [f"{name}={value}" for name, value in _FLAGS.items() if name not in _given]
os.environ["XLA_FLAGS"] = " ".join([*_given.split(), *_own])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# JAX reads the variables above when it is first imported.
import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import chex
import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

from tests.support import shapes
from tests.support.memory import Memory
from tests.support.order import Order
from tests.support.sampled import Sampled

shapes.check()  # before bbjax is imported
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline and no check for slowness: the first example of a test compiles.
hypothesis.settings.register_profile(
    "bbjax",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("bbjax")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugins; `benchmarks/conftest.py` comes here, too."""
    for plugin in (Memory(), Order(), Sampled()):
        name = type(plugin).__name__
        if not config.pluginmanager.hasplugin(name):
            config.pluginmanager.register(plugin, name)


def _seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own, the same in any order and on any worker."""
    return zlib.crc32(request.node.nodeid.encode())


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Seeds numpy and Python, and sets the counts of traces to 0, before every test."""
    chex.clear_trace_counter()
    random.seed(_seed(request))
    np.random.seed(_seed(request))


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], jax.Array]:
    """A function that returns a fresh JAX key at every call."""
    root, count = jax.random.key(_seed(request)), itertools.count()
    return lambda: jax.random.fold_in(root, next(count))


@pytest.fixture
def lenient() -> Iterator[None]:
    """JAX's usual promotion, for libraries that do not run without it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No checks of arrays against signatures, for tests of what wrong arrays raise."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real datasets next to the repository."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the datasets in ../shared/data, which is not there")
    return path
