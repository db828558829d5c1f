"""Tests of benchmarks run in the environment of all tests."""

from tests.conftest import *  # noqa: F403
