"""What the devices of a compiled program send each other."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

_CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ALONE = re.compile(r"replica_groups=\{(\{\d+\},?)+\}")  # every device by itself
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """All collectives of one kind."""

    count: int
    bytes: int  # of their results on one device


def collectives(compiled: Any) -> dict[str, Traffic]:
    """The collectives of a compiled program (``jitted.lower(...).compile()``), by kind.

    Kinds that do not occur are absent. A collective inside a loop counts once, one of single devices not at all.
    """
    found: dict[str, Traffic] = {}
    for line in compiled.as_text().splitlines():
        call = _CALL.search(line)
        if call and not _ALONE.search(line):
            result, kind = call.groups()
            old = found.get(kind, Traffic(0, 0))
            found[kind] = Traffic(old.count + 1, old.bytes + _nbytes(result))
    return dict(sorted(found.items()))


def _nbytes(result: str) -> int:
    """Bytes of an HLO shape, or of a tuple of them."""
    shapes = _SHAPE.findall(result)
    return sum(WIDTHS.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n) for dtype, sizes in shapes)


def report(found: dict[str, Traffic]) -> str:
    """One line: ``all-reduce: 3 (1.2 MB)``."""
    return ", ".join(f"{kind}: {t.count} ({t.bytes / 1e6:.3g} MB)" for kind, t in found.items()) or "no collectives"
