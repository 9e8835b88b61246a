"""The house: who imports whom, what importing loads, what is exported, and what is forbidden."""

import ast
import doctest
import graphlib
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vanishjax as vj
from tests.factories import factories
from vanishjax import activations, catalog, initializers, optimizers, transforms
from vanishjax.cli import options

PACKAGE = Path(vj.__file__).parent

# From the ground up. A room may import itself, its own floor's and the lower floors'.
FLOORS = (
    {
        "activations",
        "catalog",
        "compilation",
        "files",
        "foreign",
        "layers",
        "losses",
        "naming",
        "numerics",
        "placement",
        "problem",
        "report",
        "theory",
        "validation",
        "version",
    },
    {"initializers", "transforms"},
    {"health", "models", "optimizers", "training"},
    {"treatment"},
    {"atlas", "model_file"},
    {"cli"},
    {"__init__", "__main__"},
    {"examples"},
)

# Rooms that know less than their floor allows: training is handed a problem or its parts, and a
# report draws plain mappings.
STRICTER = {
    "files": set(),
    "foreign": set(),
    "losses": set(),
    "report": {"files", "foreign"},
    "training": {"foreign", "problem", "transforms"},
}


def rooms():
    """Every source file with the name of its room."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imported_modules(path, *, module_level=False):
    """Modules of the package that a file imports, those inside its functions included."""
    tree = ast.parse(path.read_text())
    for node in tree.body if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("vanishjax"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module.split(".")[0] == "vanishjax":
                for name in node.names:
                    module = f"{node.module}.{name.name}"
                    yield module if is_module(module) else node.module


def is_module(name):
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_arrows_point_down():
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    cellars = {room for room, _ in rooms() if room.startswith("_") and room not in floor_of}
    floor_of |= dict.fromkeys(cellars, 0)
    wrong = []
    for room, path in rooms():
        assert room in floor_of, f"{room}: give it a floor in this test"
        for module in imported_modules(path):
            target = [*module.split("."), "__init__"][1]
            allowed = STRICTER.get(room, set(floor_of))
            if target != room and (target not in allowed or floor_of[target] > floor_of[room]):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_no_module_imports_itself_round_a_corner():
    def name(path):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    graph = {name(path): set(imported_modules(path, module_level=True)) for _, path in rooms()}
    # A package's face imports its parts, whose parent it is.
    for module, imports in graph.items():
        imports -= {module}
    graphlib.TopologicalSorter(graph).prepare()


def modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import vanishjax", {"jax", "flax", "optax", "numpy", "matplotlib", "orbax"}),
        ("import vanishjax as vj; vj.adam", {"flax", "matplotlib", "orbax"}),
        (
            "import vanishjax as vj; [getattr(vj, n) for n in vj.__all__]",
            {"matplotlib", "rich.live"},
        ),
        ("import vanishjax.cli", {"jax", "flax", "optax", "numpy", "matplotlib"}),
        ("import vanishjax.training.data", {"jax", "flax", "optax"}),
    ],
)
def test_an_import_loads_only_what_it_needs(statement, unwanted):
    assert not modules_after(statement) & unwanted


# What the library itself needs; the rest comes with pictures, checkpoints, Flax models, commands.
CORE = {"jax", "jaxlib", "lazy-loader", "numpy", "optax"}
AT_WORK = """
import jax.numpy as jnp
import vanishjax as vj

params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
loss_fn = lambda p, x: jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"]) ** 2)
tx = vj.monitor(vj.adam(1e-3), layers=vj.find_layers(params, loss_fn, jnp.eye(4)))
vj.read_health(tx.init(params))
vj.initializers.lsuv(loss_fn, params, jnp.eye(4))
verdict = vj.diagnose(loss_fn, params, jnp.eye(4), vj.adam(1e-3))
str(verdict), verdict.to_dict()
"""


def test_the_library_needs_its_core_alone():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needed = {re.split("[<>=]", text)[0] for text in project["dependencies"]}
    assert needed > CORE
    modules = {"pillow": "PIL", "orbax-checkpoint": "orbax"}
    others = {modules.get(name, name.replace("-", "_")) for name in needed - CORE}
    forbid = f"import sys; sys.modules.update(dict.fromkeys({sorted(others | {'chex'})}))"
    code = f"{forbid}\n{AT_WORK}"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, cwd=root)


def test_all_is_sorted_and_resolves():
    assert list(vj.__all__) == sorted(vj.__all__)
    assert len(set(vj.__all__)) == len(vj.__all__)
    for name in vj.__all__:
        assert getattr(vj, name) is not None
    assert set(vj.__all__) <= set(dir(vj))


@pytest.mark.parametrize("module", [transforms, optimizers], ids=lambda module: module.__name__)
def test_every_factory_is_exported_at_the_top(module):
    public = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
        if value.__module__.startswith(module.__name__)
    }
    assert len(public) > 5
    assert not public - set(vj.__all__)
    for name in public:
        assert getattr(vj, name) is getattr(module, name)


def test_the_names_that_the_options_copy():
    assert tuple(sorted(activations.ACTIVATIONS)) == options.ACTIVATIONS
    assert tuple(initializers.INITIALIZERS) == options.INITIALIZERS


def test_the_catalog_holds_every_optimizer():
    made = set(vars(optimizers)) & set(factories())
    assert set(catalog.OPTIMIZERS) == made
    assert {entry.factory for entry in catalog.VARIANTS.values()} <= made


def test_files_are_nouns_for_one_concept():
    names = {
        part for _, path in rooms() for part in path.relative_to(PACKAGE).with_suffix("").parts
    }
    assert not names & {"utils", "util", "helpers", "helper", "misc", "common"}


def test_nothing_can_run_what_it_reads():
    forbidden = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
    for _, path in rooms():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & {"eval", "exec", "compile", "__import__"}
                forbidden |= names
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
                continue
            else:
                continue
            assert not names & forbidden, f"{path}:{node.lineno}"


def is_documented_by_example(name):
    value = getattr(vj, name)
    is_warning = inspect.isclass(value) and issubclass(value, Exception)
    return not (inspect.ismodule(value) or is_warning)


@pytest.mark.parametrize("name", [*filter(is_documented_by_example, vj.__all__)])
def test_every_export_shows_an_example(name):
    """Every run of the tests runs them, as pytest collects the doctests of these modules."""
    value = getattr(vj, name)
    assert inspect.getdoc(value), f"{name} has no docstring"
    module = importlib.import_module(value.__module__)
    assert Path(module.__file__).is_relative_to(PACKAGE)
    found = doctest.DocTestFinder().find(value, name, module=module)
    assert any(test.examples for test in found), f"{name} shows no example"


def test_pytest_collects_examples_of_the_package():
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    pytest_settings = settings["tool"]["pytest"]["ini_options"]
    assert "vanishjax" in pytest_settings["testpaths"]
    assert "--doctest-modules" in pytest_settings["addopts"].split()
