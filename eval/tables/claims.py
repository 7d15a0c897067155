"""What a paper says about its table, as checks that can fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from eval.tables.rows import NotMeasured, Rows


class Finding(NamedTuple):
    """What the rows say about a claim."""

    holds: bool
    evidence: str  # the numbers, on one line


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper."""

    text: str
    source: str
    """Where it stands."""
    test: Callable[[Rows], Finding]
    """May raise `NotMeasured`."""
    asserted: bool = True
    """A claim that is not asserted is reported only."""


class Verdict(NamedTuple):
    """A claim and what came of it."""

    claim: Claim
    status: Literal["holds", "fails", "not measured", "reported"]
    evidence: str

    def __str__(self) -> str:
        return f"**{self.status}**: {self.claim.text} ({self.claim.source}). {self.evidence}"


def judge(claim: Claim, rows: Rows) -> Verdict:
    """Hold a claim against the rows."""
    try:
        finding = claim.test(rows)
    except NotMeasured as missing:
        return Verdict(claim, "not measured", f"Missing: {missing}.")
    if not claim.asserted:
        return Verdict(claim, "reported", f"{'Yes' if finding.holds else 'No'}: {finding.evidence}")
    return Verdict(claim, "holds" if finding.holds else "fails", finding.evidence)


def broken(verdicts: Iterable[Verdict], partial: bool) -> list[Verdict]:
    """The verdicts for which a check fails: asserted claims that fail or, unless `partial`, could not be tested."""
    bad = {"fails"} if partial else {"fails", "not measured"}
    return [verdict for verdict in verdicts if verdict.claim.asserted and verdict.status in bad]


def listed(pairs: Iterable[tuple[str, object]]) -> str:
    """``"RetNet 0.70, GLA 0.81"``."""
    return ", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in pairs)


def need_two(what: str, values: Sequence[object]) -> None:
    """Raise `NotMeasured` unless there are two values to compare."""
    if len(values) < 2:
        raise NotMeasured(f"two or more {what}")
