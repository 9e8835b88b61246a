"""optax's own shipped tests, run with our functions in the place of its.

The file is its own pytest plugin: the test below starts pytest on optax's files with `-p` and this
module, which puts our functions into optax's namespaces before the files are imported.
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import optax
import pytest

ROOT = Path(__file__).parents[2]
OPTAX = Path(optax.__file__).parent
VERSION = "0.2.8"  # whose tests the table below was made with
OUTCOMES = "OPTAX_SUITE_OUTCOMES"  # environment: where the plugin writes what it saw
OURS = "OPTAX_SUITE_OURS"  # environment: whether our functions stand in optax's place

FILES = [
    "_src/alias_test.py",
    "_src/float64_test.py",
    "_src/transform_test.py",
    "contrib/_common_test.py",
    "contrib/_muon_test.py",
    "contrib/_schedule_free_test.py",
    "schedules/_inject_test.py",
    "transforms/_accumulation_test.py",
    "transforms/_clipping_test.py",
    "transforms/_combining_test.py",
    "transforms/_conditionality_test.py",
    "transforms/_freezing_test.py",
    "transforms/_layouts_test.py",
    "transforms/_masking_test.py",
    "transforms/_monitoring_test.py",
    "tree_utils/_state_utils_test.py",
]
# Optimizers that are ours, or made of our transforms once they stand in optax's place.
OPTIMIZERS = (
    "adam|adamw|fromage|lamb|lars|lion|muon|nadam|nadamw|noisy_sgd|rmsprop|sgd|sgd_mom|sign_sgd|"
    "signum"
)

# Tests that pass with optax's functions and fail with ours, by their name and parameters.
EXCEPTIONS = {
    "complex": "complex leaves are refused, with their path",
    "ExtraArgsTest::test_extra_args ": "integer leaves are refused, with their path",
    r"test_explicit_dtype\d+ .params_dtype='bfloat16', state_dtype=None": (
        "optax keeps 16-bit moments, which lose small gradients and stop decaying; ours are float32"
    ),
    "test_lion_(modes_variants|invalid_mode_raises)": "lion is the sign; it has no other modes",
    r"MuonTest::\w+_(aol|schatten)": "one preconditioning, by the Frobenius norm",
    r"MuonTest::test_(aol|muon_orthogonalization_modes_aol)": "the same",
    "MuonTest::test_dim_nums_combinations_frobenius": (
        "arrays of three axes are matrices without dimension numbers too"
    ),
    "test_adaptive_grad_clip_with_axis": "`layers` say what a unit is, instead of an axis",
    "StateUtilsTest::test_(dict_based_optimizers|tree_set)": (
        "the state holds the root of the second moment, `nu_root`, where optax's has `nu`"
    ),
}


def in_place() -> dict:
    """optax's names -> our functions; `contrib.` marks those that live there."""
    import vanishjax as vj

    same = [
        "adam",
        "adamw",
        "nadam",
        "nadamw",
        "sgd",
        "rmsprop",
        "lion",
        "lars",
        "lamb",
        "scale_by_adam",
        "scale_by_rms",
        "scale_by_stddev",
        "scale_by_sign",
        "scale_by_lion",
        "scale_by_trust_ratio",
        "clip_by_global_norm",
        "centralize",
    ]

    def trace(decay, nesterov=False, accumulator_dtype=None):
        return (vj.nesterov if nesterov else vj.momentum)(decay, accumulator_dtype)

    # Optax's tests spell out these defaults of its; another value is an argument we don't have.
    def without(fn, **defaults):
        @functools.wraps(fn)
        def call(*args, **kwargs):
            others = {k: v for k, v in kwargs.items() if k not in defaults or v != defaults[k]}
            return fn(*args, **others)

        return call

    muon = {"preconditioning": "frobenius", "adaptive": False}
    return {name: getattr(vj, name) for name in same} | {
        "trace": trace,
        "adaptive_grad_clip": without(vj.adaptive_clip, axis=None),
        "contrib.muon": without(vj.muon, **muon),
        "contrib.scale_by_muon": without(vj.scale_by_muon, **muon),
    }


def failures(paths, out, ours):
    """Name -> whether it failed, of the tests in optax's files, with our functions or its own."""
    (out / "empty.ini").touch()
    command = [sys.executable, "-m", "pytest", "-q", "-p", __name__, "-p", "no:cacheprovider"]
    # A traceback that nobody reads takes longer than the test.
    command += ["--tb=no", "-c", str(out / "empty.ini"), "--rootdir", str(OPTAX)]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "2"]
    written = out / "outcomes.json"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        OUTCOMES: str(written),
        OURS: str(int(ours)),
    }
    run = subprocess.run(
        [*command, *(str(OPTAX / path) for path in paths)],
        cwd=out,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout[-4000:] + run.stderr[-4000:]
    return json.loads(written.read_text())


@pytest.mark.slow
@pytest.mark.skipif(optax.__version__ != VERSION, reason=f"the table is of optax {VERSION}")
@pytest.mark.skipif(
    not all((OPTAX / file).exists() for file in FILES), reason="optax came without its tests"
)
def test_no_test_passes_with_optax_and_fails_with_ours(tmp_path):
    outcomes = failures(FILES, tmp_path, ours=True)
    assert len(outcomes) > 500
    failed = [name for name, bad in outcomes.items() if bad]
    unforeseen = [n for n in failed if not any(re.search(one, n) for one in EXCEPTIONS)]
    if unforeseen:
        # Some fail with optax's own functions too, under the newest JAX.
        paths = [name.split(" ")[0] for name in unforeseen]
        theirs = failures(paths, tmp_path, ours=False)
        assert [name for name in unforeseen if not theirs[name]] == []
    stale = [one for one in EXCEPTIONS if not any(re.search(one, name) for name in failed)]
    assert stale == [], "exceptions that nothing needs any more"


# The plugin.


def pytest_configure(config):
    if OUTCOMES not in os.environ:
        return
    if importlib.util.find_spec("sklearn") is None:  # its data serve tests that aren't selected
        stub = types.ModuleType("sklearn")
        stub.datasets = stub.linear_model = None
        sys.modules["sklearn"] = stub
    if os.environ[OURS] == "1":
        from optax import contrib
        from optax._src import alias, transform
        from optax.contrib import _muon
        from optax.transforms import _accumulation, _clipping

        places = {
            "": [optax, alias, transform, optax.transforms, _accumulation, _clipping],
            "contrib": [contrib, _muon],
        }
        for path, function in in_place().items():
            home, _, name = path.rpartition(".")
            found = [module for module in places[home] if hasattr(module, name)]
            assert found, f"optax has no {path} any more"
            for module in found:
                setattr(module, name, function)
    config.pluginmanager.register(Recorder(hasattr(config, "workerinput")))


class Recorder:
    """Selects tests of what is ours, and writes how each came out, its parameters in its name."""

    def __init__(self, worker):
        self.worker = worker
        self.labels = {}
        self.failed = set()

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if selected(label(item))]
        for item in items:
            item.user_properties.append(("label", label(item)))

    def pytest_runtest_logreport(self, report):
        if report.when == "setup":
            self.labels[report.nodeid] = dict(report.user_properties)["label"]
        if report.failed:  # subtests report by themselves
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self):
        if not self.worker:
            outcomes = {label: node in self.failed for node, label in self.labels.items()}
            Path(os.environ[OUTCOMES]).write_text(json.dumps(outcomes))


def label(item):
    """The test's name with its parameters, which absltest keeps out of it."""
    parameters = getattr(getattr(item.cls, item.originalname, None), "__x_params_repr__", "")
    return f"{item.nodeid} {parameters}"


def selected(name):
    if "LBFGS" in name or "galore" in name:
        return False
    if "wrapper_name='mechanize'" in name:  # long runs of a wrapper that is optax's
        return False
    if (
        "test_multi_steps_mixed_precision" in name
    ):  # a minute about the accumulator, which is optax's
        return False
    optimizer = re.search(r"opt_name='(\w+)'", name)
    return optimizer is None or re.fullmatch(OPTIMIZERS, optimizer[1]) is not None
