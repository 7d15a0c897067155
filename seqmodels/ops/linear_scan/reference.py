"""The definition of `linear_scan`: a loop over time."""

from __future__ import annotations

from seqmodels.axes import Array
from seqmodels.ops.scan import scan_tokens


def run(
    a: Array,
    b: Array,
    state: Array,
    segment_ids: Array | None,
    *,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """``a, b [B,T,...]`` -> ``(h [B,T,...], state)``, both in the dtype of the given state."""
    del chunk_size
    a, b = a.astype(state.dtype), b.astype(state.dtype)

    def step(h, token):
        a_t, b_t = token
        h = a_t * h + b_t
        return h, h

    return scan_tokens(step, state, (a, b), segment_ids=segment_ids, num_segments=num_segments)
