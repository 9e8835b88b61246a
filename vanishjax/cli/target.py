"""A network of the user's own: a function in a module or a file, and what it returns."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from vanishjax.foreign import shown

if TYPE_CHECKING:
    from vanishjax.problem import Problem

_RETURNS = "(loss_fn, params, batch), (loss_fn, params, batch, tx) or (problem, batch)"
_OF_MODELS = "with a Flax nnx or Equinox model (model, loss_fn, batch[, tx])"


class TargetError(ValueError):
    """What is wrong with a target, in one line."""


class Target(NamedTuple):
    """A network to look at."""

    problem: Problem
    batch: Any


@contextlib.contextmanager
def open_target(name: str) -> Iterator[Target]:
    """Imports a function and calls it.

    A module is looked for where `python -m` would, from the current directory on. A file imports
    what it would under `python FILE`: from its own folder on, and not from the current directory.
    What the user's code prints goes to standard error.

    Args:
      name: `module:function` or `path/to/file.py:function`.

    Yields:
      What the function returned. Its loss may import more while the block lasts.

    Raises:
      TargetError: It can't be imported or found, it or its loss raises, or it returns something
        else.
    """
    place, colon, function = name.rpartition(":")
    if not colon:
        raise TargetError(
            f"{name or 'TARGET'}: say which function returns the network, as "
            f"{name or 'MODULE'}:FUNCTION"
        )
    is_file = place.endswith(".py") or os.sep in place
    is_module = all(part.isidentifier() for part in place.split("."))
    if not function.isidentifier() or not (is_file or is_module) or "\0" in place:
        raise TargetError(f"{name}: expected MODULE:FUNCTION or FILE.py:FUNCTION")
    path = list(sys.path)
    sys.path[:] = _search_path(place if is_file else None)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = _import_file(place) if is_file else _import_module(place)
            make = _function(module, place, function)
            with blame(name):
                returned = make()
            yield _unpack(name, returned)
    finally:
        sys.path[:] = path


def _search_path(file: str | None) -> list[str]:
    """Where Python would look for modules, for a file of the user's or else for a module."""
    here = str(Path.cwd())
    if file is None:
        return [here, *sys.path]
    # `python -m vanishjax` has put the current directory first.
    rest = sys.path[1:] if sys.path[:1] in ([""], [here]) else sys.path
    return [str(Path(file).resolve().parent), *rest]


@contextlib.contextmanager
def blame(what: str) -> Iterator[None]:
    """Turns what the user's code raises into one line that names the code and the place."""
    try:
        yield
    except TargetError:
        raise
    except (Exception, SystemExit) as error:
        said = str(error.msg if isinstance(error, SyntaxError) else error)
        text = shown(next(iter(said.strip().splitlines()), ""), 200)
        kind = type(error).__name__ + (f": {text}" if text else "")
        raise TargetError(f"{what} raised {kind}{_place(error)}") from error


@contextlib.contextmanager
def looking_at(name: str) -> Iterator[None]:
    """Turns what a target's network makes the package raise into one line that names the target."""
    try:
        yield
    except TargetError:
        raise
    except ValueError as error:
        if isinstance(error.__cause__, TargetError):
            raise error.__cause__ from error
        raise TargetError(f"{name}: {error}") from error
    except (RuntimeError, OSError, MemoryError):
        raise
    except Exception:
        # JAX speaks up in many ways about trees and arrays that it can't take.
        with blame(f"{name}: looking at what it returned"):
            raise


def _import_module(name: str) -> ModuleType:
    with blame(f"{name}: importing it"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            if missing != name and not name.startswith(f"{missing}."):
                raise
            files = [path.stem for path in Path.cwd().glob("*.py")]
            near = difflib.get_close_matches(missing, files, n=1) if "." not in missing else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TargetError(
                f"{name}: no module named {missing!r}, neither in {Path.cwd()} nor installed{hint}"
            ) from error


def _import_file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise TargetError(f"{place}: {'is a folder' if path.is_dir() else 'no such file'}")
    # Not the file's own name: `random.py` must not stand in for Python's.
    name = f"vanishjax_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise TargetError(f"{place}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    with blame(f"{place}: importing it"):
        # Flax's modules are dataclasses, which look for their module here.
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, place: str, name: str) -> Callable[[], Any]:
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(name, own, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TargetError(f"{place}: has no function {name!r}{hint}")
    function: Any = getattr(module, name)
    if not callable(function):
        raise TargetError(
            f"{place}:{name}: is no function but {_kind(function)}; name a function that returns "
            f"{_RETURNS}"
        )
    return function


def _unpack(name: str, returned: Any) -> Target:
    from vanishjax.problem import Problem

    parts = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    if len(parts) == 2 and isinstance(parts[0], Problem):
        return Target(_guarded(name, parts[0]), parts[1])
    from_model = _from_model(parts)
    if from_model is not None:
        make, (*arguments, batch), tx = from_model
        with blame(f"{name}: what it returned"):
            return Target(_guarded(name, make(*arguments, _checked(name, tx, returned))), batch)
    if len(parts) not in (3, 4) or isinstance(parts[0], Problem):
        raise TargetError(
            f"{name}: must return {_RETURNS}, got {_kinds(returned)}; or {_OF_MODELS}"
        )
    loss_fn, params, batch, tx = (*parts, None)[:4]
    if not callable(loss_fn):
        raise TargetError(
            f"{name}: must return loss_fn(params, batch) first, a function, got {_kinds(returned)}"
        )
    problem = Problem(loss_fn, params, _checked(name, tx, returned))
    return Target(_guarded(name, problem), batch)


def _from_model(parts: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], Any] | None:
    """How to make a problem of a model, its loss and a batch; None if the first part is no model.

    A model can only be here if its framework is loaded.
    """
    from vanishjax.problem import Problem

    ways = (
        ("flax.nnx", Problem.from_nnx, 3),
        ("equinox", Problem.from_equinox, 3),
        ("flax.linen", Problem.from_linen, 4),
    )
    for framework, make, count in ways:
        module = getattr(sys.modules.get(framework), "Module", ())
        fits = len(parts) in (count, count + 1) and isinstance(parts[0], module)
        # A loss may be a module, too: then what follows are parameters.
        if fits and callable(parts[count - 2]):
            return make, parts[:count], (*parts, None)[count]
    return None


def _checked(name: str, tx: Any, returned: Any) -> Any:
    if tx is not None and not (hasattr(tx, "init") and hasattr(tx, "update")):
        place = "fourth" if len(returned) == 4 else "fifth"
        raise TargetError(
            f"{name}: must return a gradient transform with init and update {place}, such as "
            f"vanishjax.adam(1e-3), got {_kinds(returned)}"
        )
    return tx


def _guarded(name: str, problem: Problem) -> Problem:
    """The problem with losses that blame the user's code for what they raise."""

    def guarded(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with blame(f"{name}: its loss_fn"):
                return loss_fn(*args, **kwargs)

        return call

    evaluate_fn = problem.evaluate_fn
    return dataclasses.replace(
        problem,
        loss_fn=guarded(problem.loss_fn),
        evaluate_fn=None if evaluate_fn is None else guarded(evaluate_fn),
    )


def _kinds(value: Any) -> str:
    if not isinstance(value, tuple | list):
        return _kind(value)
    return f"({', '.join(_kind(item) for item in value)})"


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _place(error: BaseException) -> str:
    """File and line of the last of the user's own lines that led to an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    own = [place for place in places if _is_own(place[0])]
    if not own:
        return ""
    file, line = own[-1]
    if file.startswith(f"{Path.cwd()}{os.sep}"):
        file = os.path.relpath(file)
    return f" ({file}:{line})"


def _is_own(file: str) -> bool:
    """Whether a file is the user's: not ours, not Python's, not that of an installed package."""
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib")]
    folders.append(str(Path(__file__).parents[1]))
    return not file.startswith(("<", *(f"{folder}{os.sep}" for folder in folders)))
