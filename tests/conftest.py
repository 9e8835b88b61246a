"""Eight virtual CPU devices, quick compilation and one cache of programs, before JAX starts.

Signals do what they do in a shell: a job in the background is started with Ctrl-C ignored, and one
under nohup with SIGHUP, which it and the processes that it starts would go on ignoring.
"""

import atexit
import gc
import importlib.metadata
import itertools
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from packaging.version import Version

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Most of the time goes into compiling small programs. One thread each is enough for them, and the
# older code for fused loops takes two thirds of the time; jaxlib 0.11 has it no more.
flags = ["--xla_force_host_platform_device_count=8", "--xla_cpu_parallel_codegen_split_count=1"]
if Version(importlib.metadata.version("jaxlib")) < Version("0.11"):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] != "cpu":
    # Accelerators round the factors of a product; what is compared with float64 should not be.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the commands that tests start inherit it, so nothing is compiled twice.
    cache = tempfile.mkdtemp(prefix="vanishjax-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    # What compiles in less is read, and written, no sooner.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

# Nobody reads from which lines of Python the compiler's own operations come.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Tracing makes many objects that live long: walking them all so often takes 5% of the time.
gc.set_threshold(20_000, 20, 50)

_MAPS = Path("/proc/self/maps")
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _few_memory_maps():
    """Forgets compiled programs in time: each takes some megabytes, among which new ones are slow.

    Each maps memory three times as well, and Linux allows 65,530 maps a process: beyond that XLA
    ends with a segmentation fault.
    """
    yield
    if next(_tests) % 10 == 0 and _MAPS.exists():
        with _MAPS.open("rb") as lines:
            count = sum(1 for _ in lines)
        if count > 4_000:
            import jax

            jax.clear_caches()
            gc.collect()


# LLVM need not optimize what a test runs once. Where bits of different programs are compared, and
# where rounding is the subject, programs are those that users run; so are those of the theory, of
# which a few compute much. XLA's own passes are the same in both.
_OPTIMIZED = {
    "test_atlas_devices.py",
    "test_batches.py",
    "test_layered_rounding.py",
    "test_model_state.py",
    "test_numerics.py",
    "test_old_checkpoint.py",
    "test_parallel.py",
    "test_response.py",
    "test_resume.py",
    "test_rounding.py",
    "test_shape.py",
    "test_theory.py",
    "test_training.py",
}


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request):
    import jax

    unoptimized = request.path.name not in _OPTIMIZED
    jax.config.update("jax_disable_most_optimizations", unoptimized)
    # Commands in processes of their own do the same.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(unoptimized))


@pytest.fixture
def figures(monkeypatch):
    """Keeps the figures that are written, to ask them what they show."""
    from matplotlib.figure import Figure

    seen = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (seen.append(self), savefig(self, *a, **k))[1]
    )
    return seen
