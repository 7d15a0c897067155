"""The tables that there are, a line each: ``python -m eval.tables``."""

from __future__ import annotations

import importlib
import pkgutil

import eval.tables as package
from eval.tables.command import Table


def tables() -> list[Table]:
    """All tables, by name."""
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name != "__main__"]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return [module.TABLE for module in modules if hasattr(module, "TABLE")]


if __name__ == "__main__":
    for table in tables():
        print(f"python -m eval.tables.{table.name:<10}  {table.title}")
