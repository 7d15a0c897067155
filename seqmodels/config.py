"""Experiment files: load one, change it from the command line, write it as JSON and read it back.

An experiment file is Python and defines ``get_config() -> Experiment``. In JSON a dataclass is an object whose
``"class"`` key says ``module:qualname``; every sequence is a tuple, and a dtype object is ``{"dtype": name}``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import itertools
import json
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from seqmodels.errors import UserError, suggest

if TYPE_CHECKING:
    from seqmodels.train.experiment import Experiment

C = TypeVar("C")
CLASS = "class"
DTYPE = "dtype"
PLAIN = (str, int, float, bool, type(None))


# Loading


def load(path: str | os.PathLike[str]) -> Experiment:
    """The experiment that ``get_config()`` in the Python file `path` returns.

    Raises:
      UserError: the file is missing, fails to run, has no ``get_config`` or returns something else.
    """
    from seqmodels.train.experiment import Experiment

    file = Path(path)
    if not file.is_file():
        nearby = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(
            f"config {str(path)!r} is not a file; give the path of a Python file{suggest(str(path), nearby)}"
        )
    with _blaming(file, "fails to run"):
        module = _execute(file)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config {str(path)!r} has no function get_config(); define it and return an Experiment")
    with _blaming(file, "get_config() fails"):
        experiment = get_config()
    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise UserError(f"config {str(path)!r}: get_config() returned {kind}, expected an Experiment; return one")
    check_types(experiment)
    return experiment


def _execute(file: Path) -> types.ModuleType:
    """Run `file` as a module named by its path from the working directory, so that its classes can be found again."""
    try:
        parts = file.resolve().relative_to(Path.cwd()).with_suffix("").parts
    except ValueError:
        parts = (file.stem,)
    name = ".".join(parts)
    known = sys.modules.get(name)
    taken = known is not None and Path(getattr(known, "__file__", None) or "").resolve() != file.resolve()
    if taken or not all(part.isidentifier() for part in parts):
        name = "experiment_" + re.sub(r"\W", "_", name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"config {str(file)!r} is not a Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _blaming(file: Path, what: str) -> Iterator[None]:
    """Turn any exception into a `UserError` that names `file`, the line in it and the cause."""
    try:
        yield
    except (Exception, SystemExit) as error:
        own = {str(file), str(file.absolute()), str(file.resolve())}
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
        if isinstance(error, SyntaxError) and error.filename in own:
            lines = [error.lineno]
        where = f" at line {lines[-1]}" if lines else ""
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"config {str(file)!r} {what}{where}: {cause}") from error


# Overrides


def override(config: C, arguments: Sequence[str], prog: str = "train.py") -> C:
    """`config` with the fields that `arguments` name: ``["--model.dim", "512"]``.

    ``--help`` prints every field with its docstring and default, and exits.

    Raises:
      UserError: an unknown field (with a suggestion), or a value that does not fit.
    """
    import tyro

    options = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    if "-h" in arguments or "--help" in arguments:
        tyro.cli(type(config), default=config, args=["--help"], prog=prog, config=options)
    boxes = io.StringIO()
    try:
        with _wide_terminal(), contextlib.redirect_stderr(boxes):
            changed, unknown = tyro.cli(
                type(config), default=config, args=list(arguments), prog=prog, config=options, return_unknown_args=True
            )
    except SystemExit:
        raise UserError(_gist(boxes.getvalue())) from None
    if unknown:
        raise UserError(unknown_argument(unknown[0], (f"--{name.replace('_', '-')}" for name in fields_of(config))))
    check_types(changed)
    return changed


def unknown_argument(argument: str, known: Iterable[str]) -> str:
    """The message for a command-line `argument` that is not among the `known` flags."""
    hint = suggest(argument.replace("_", "-"), known) if argument.startswith("--") else ""
    return f"argument {argument!r} is not known{hint or ', and no flag takes it'}; --help lists every flag"


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Keep tyro from wrapping its messages."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "4000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


def _gist(box: str) -> str:
    """What the first paragraph of tyro's boxed message says, in one line."""
    lines = [line.strip("│╭╮╰╯ \n") for line in box.splitlines()]
    is_rule = lambda line: len(line) > 1 and not line.strip("─-")  # noqa: E731  tyro draws in ASCII where UTF-8 may fail
    body = list(itertools.takewhile(lambda line: not is_rule(line), itertools.dropwhile(is_rule, lines[1:])))
    text = " ".join(" ".join(body).split()).removeprefix("Error parsing ")
    return text if text.endswith("--help") else f"{text.rstrip('.')}; --help shows what each field takes"


def fields_of(value: Any, path: str = "") -> list[str]:
    """Dotted paths of every leaf in nested dataclasses and tuples of them: ``"model.pattern.0.mixer.num_heads"``."""
    if dataclasses.is_dataclass(value):
        inside = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
        inside = [(str(i), item) for i, item in enumerate(value)]
    else:
        return [path]
    return [leaf for name, item in inside for leaf in fields_of(item, f"{path}.{name}" if path else name)]


# Types


def check_types(config: Any, path: str = "") -> None:
    """Check every field of nested dataclasses against its annotation.

    Raises:
      UserError: names the field, its value and what it takes.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        where = f"{path}.{field.name}" if path else field.name
        _check(getattr(config, field.name), hints[field.name], where)


def _check(value: Any, hint: Any, path: str) -> None:
    if not _fits(value, hint):
        fix = f"set --{path.replace('_', '-')}"
        options = get_args(hint) if get_origin(hint) is Literal else ()
        hint_for_typo = suggest(value, map(str, options)) if isinstance(value, str) else ""
        raise UserError(f"{path}={value!r} must be {_name(hint)}{hint_for_typo}; {fix}")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_types(value, path)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            if dataclasses.is_dataclass(item):
                check_types(item, f"{path}.{i}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return len(each) == len(value) and all(map(_fits, value, each))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    expected = origin or hint
    return isinstance(value, expected) if isinstance(expected, type) else True


def _name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_name, get_args(hint)))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


# JSON


def to_json(config: Any) -> str:
    """`config`, a dataclass, as indented JSON; `from_json` gives an equal one back.

    Raises:
      UserError: a value that JSON cannot hold exactly, or a class that cannot be found again by name.
    """
    return json.dumps(_encode(config, ""), indent=2) + "\n"


def from_json(text: str, source: str = "JSON") -> Any:
    """The dataclass that `to_json` wrote as `text`; `source` names it in messages.

    Raises:
      UserError: not JSON, an unknown class or field (with a suggestion), a missing field or a wrong type.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not valid JSON at line {error.lineno}: {error.msg}; restore the file") from None
    config = _decode(tree, "", source)
    if not dataclasses.is_dataclass(config):
        raise UserError(f"{source} holds {type(config).__name__}, expected an object with a {CLASS!r} key")
    check_types(config)
    return config


def _encode(value: Any, path: str) -> Any:
    if type(value) in PLAIN:
        return value
    if isinstance(value, tuple) and type(value) is tuple:
        return [_encode(item, f"{path}.{i}") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        names = [field.name for field in dataclasses.fields(value) if field.init]
        inside = {name: _encode(getattr(value, name), f"{path}.{name}") for name in names}
        if CLASS in inside or "<locals>" in kind.__qualname__:
            raise UserError(
                f"class {kind.__qualname__} of {path.lstrip('.') or 'the config'} cannot be found by name; "
                "define it at the top of a module"
            )
        return {CLASS: f"{kind.__module__}:{kind.__qualname__}", **inside}
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):  # also jnp.bfloat16
        return {DTYPE: np.dtype(value).name}
    raise UserError(
        f"{path.lstrip('.')}={value!r} is a {type(value).__name__}, which a config cannot store; "
        "use numbers, strings, None, tuples and dataclasses"
    )


def _decode(tree: Any, path: str, source: str) -> Any:
    if isinstance(tree, list):
        return tuple(_decode(item, f"{path}.{i}", source) for i, item in enumerate(tree))
    if not isinstance(tree, dict):
        return tree
    where = f"{source}: {path.lstrip('.')}" if path else source
    if set(tree) == {DTYPE}:
        return np.dtype(tree[DTYPE])
    if CLASS not in tree:
        raise UserError(f"{where} is an object without a {CLASS!r} key; add it as 'module:Class'")
    kind = _find_class(tree[CLASS], where)
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for name in tree.keys() - known.keys() - {CLASS}:
        raise UserError(f"{where}: {kind.__name__} has no field {name!r}{suggest(name, known)}; rename or remove it")
    for name in known.keys() - tree.keys():
        field = known[name]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: {kind.__name__} needs field {name!r}, which is missing; add it")
    inside = {name: _decode(tree[name], f"{path}.{name}", source) for name in tree if name != CLASS}
    hints = typing.get_type_hints(kind)
    for name, value in inside.items():  # before the class's own checks, which take the types for granted
        _check(value, hints[name], f"{path}.{name}".lstrip("."))
    return kind(**inside)


def _find_class(key: str, where: str) -> Any:
    module_name, _, qualname = str(key).partition(":")
    try:
        module = sys.modules.get(module_name) or importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{where}: module of class {key!r} does not import ({error}); run where it can be found"
        ) from None
    found: Any = module
    for part in qualname.split("."):
        found, parent = getattr(found, part, None), found
        if found is None:
            raise UserError(f"{where}: class {key!r} does not exist{suggest(part, vars(parent))}; fix the name")
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{where}: {key!r} is not a dataclass; name a config class")
    return found
