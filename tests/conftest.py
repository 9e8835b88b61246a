"""Eight virtual CPU devices and one cache of compiled programs for all tests, before JAX starts."""

import atexit
import gc
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the commands that tests start inherit it, so nothing is compiled twice.
    cache = tempfile.mkdtemp(prefix="vanishjax-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

_MAPS = Path("/proc/self/maps")
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _few_memory_maps():
    """Forgets compiled programs in time: each maps memory, and Linux allows 65,530 maps a process.

    Beyond that XLA ends with a segmentation fault.
    """
    yield
    if next(_tests) % 10 == 0 and _MAPS.exists():
        with _MAPS.open("rb") as lines:
            count = sum(1 for _ in lines)
        if count > 20_000:
            import jax

            jax.clear_caches()
            gc.collect()
