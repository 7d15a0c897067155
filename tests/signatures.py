"""Check jaxtyping signatures while the tests run; users' programs are never slowed by it.

`install` makes Python wrap, as it imports the package, every function and method of a module that has a jaxtyping
annotation. A signature is checked when the function has *returned*, arguments and result together: so a bad argument
still gets the function's own one-line ``ValueError``, and an argument that the function should have refused is found.
Shapes are read from tracers too, so one trace inside jit, grad, vmap, scan or shard_map is checked like a call.
"""

import functools
import importlib.machinery
import inspect
import re
import sys
import types
import typing

import beartype.door
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jaxtyping import AbstractArray, PyTree, jaxtyped


class SignatureError(TypeError):
    """An argument or a result disagrees with the function's jaxtyping signature."""


def parts(hint):
    """`hint` and everything inside of it."""
    yield hint
    for inner in typing.get_args(hint):
        yield from parts(inner)


def is_shaped(hint) -> bool:
    """Whether `hint` itself is a jaxtyping annotation (not a union or tuple of them)."""
    return isinstance(hint, type) and (issubclass(hint, AbstractArray) or type(hint) is type(PyTree[int]))


def shaped_hints(function) -> dict[str, object]:
    """Annotations of `function` in which jaxtyping occurs, by the name of the argument or ``"return"``.

    Raises:
      NameError: an annotation cannot be resolved, so it could not be checked.
    """
    if not any(hasattr(jaxtyping, word) for text in function.__annotations__.values() for word in words(text)):
        return {}
    hints = typing.get_type_hints(function, include_extras=True)
    named = [*inspect.signature(function).parameters, "return"]
    return {name: hints[name] for name in named if name in hints and any(map(is_shaped, parts(hints[name])))}


def words(annotation) -> list[str]:
    """Names that are subscripted in an annotation, as written in the source."""
    return re.findall(r"(\w+)\[", str(annotation))


def checked(function):
    """`function` with its jaxtyping annotations checked after every call, or itself if it has none."""
    hints = shaped_hints(function)
    if not hints:
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        given = {**signature.bind(*args, **kwargs).arguments, "return": result}
        with jaxtyped("context"):  # sizes bound to axis letters hold for this call
            for name, hint in hints.items():
                if name in given and not agrees(given[name], hint):
                    shapes = ", ".join(f"{key}: {outline(given[key])}" for key in hints if key in given)
                    where = f"{function.__module__}.{function.__qualname__}"
                    raise SignatureError(f"{where}: {name} is not {hint}, given {shapes}")
        return result

    return call


def agrees(value, hint) -> bool:
    """Whether `value` is what `hint` says; a NumPy array may stand for the JAX array that it becomes."""
    if beartype.door.is_bearable(value, hint):
        return True
    jaxed = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, value)
    return beartype.door.is_bearable(jaxed, hint)


def outline(value) -> str:
    """Dtype and shape of an array, item by item for tuples, else the type's name."""
    if isinstance(value, tuple):
        return f"({', '.join(map(outline, value))})"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def check_module(module: types.ModuleType) -> None:
    """Put `checked` around the functions that `module` defines, and the methods of its classes."""
    for owner in [module, *(value for value in vars(module).values() if inspect.isclass(value))]:
        for name, value in list(vars(owner).items()):
            if inspect.isfunction(value) and value.__code__.co_filename == module.__file__:  # not a dataclass's own
                wrapped = checked(value)
                if wrapped is not value:
                    setattr(owner, name, wrapped)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module, then checks its signatures."""

    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        check_module(module)


class Finder(importlib.machinery.PathFinder):
    """Finds modules of some packages, to be loaded by `Loader`."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self.packages):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install(*packages: str) -> None:
    """Check the signatures of `packages`, none of which may have been imported yet."""
    early = [name for name in packages if name in sys.modules]
    if early:
        raise RuntimeError(f"{early} were imported before their signatures could be checked; import conftest first")
    sys.meta_path.insert(0, Finder(packages))
