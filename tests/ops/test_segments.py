"""`ops.segments` against brute force over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqmodels import ops
from seqmodels.ops import segments
from tests.ops.laws import documents, interleaved


def test_documents_by_brute_force():
    ids = documents(4, 60)
    held, start, index = (np.asarray(f(ids)) for f in (segments.last_real, segments.starts, segments.document_index))
    for b in range(4):
        last, number = 0, 0
        for t, here in enumerate(ids[b]):
            fresh = here != 0 and last not in (0, here)
            number += fresh
            last = here or last
            assert (held[b, t], start[b, t], index[b, t]) == (last, fresh, number)


@pytest.mark.parametrize(("T", "S", "multiple"), [(37, 5, 8), (1, 4, 1), (16, 1, 16), (3, 50, 4), (40, 3, 1)])
def test_regroup_gives_every_chunk_to_one_segment(T, S, multiple):
    ids = interleaved(3, T, S)
    layout = jax.jit(segments.regroup, static_argnums=(1, 2))(ids, S, multiple)
    source, segment = np.asarray(layout.source), np.asarray(layout.segment)
    for b in range(3):
        for s in range(S):
            mine = np.flatnonzero(segment[b] == s)
            tokens = source[b].reshape(-1, multiple)[mine].reshape(-1)
            np.testing.assert_array_equal(tokens[tokens < T], np.flatnonzero(ids[b] == s + 1))  # all, in time order
            assert np.all(tokens[:-1] <= tokens[1:])  # empty places only at the end
            assert len(mine) == -(-np.sum(ids[b] == s + 1) // multiple)
            np.testing.assert_array_equal(np.flatnonzero(np.asarray(layout.first)[b] & (segment[b] == s)), mine[:1])
            np.testing.assert_array_equal(np.flatnonzero(np.asarray(layout.last)[b] & (segment[b] == s)), mine[-1:])
        assert np.all(source[b].reshape(-1, multiple)[segment[b] == S] == T)
    x = np.arange(1.0, 3 * T + 1).reshape(3, T)
    np.testing.assert_array_equal(layout.scatter(layout.gather(x)), np.where(ids == 0, 0, x))
    np.testing.assert_array_equal(np.asarray(layout.ids) != 0, source < T)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_ids_beyond_the_segments_are_padding(impl):
    """Every op with `num_segments` reads an id outside ``0..S`` as 0."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 1, 4)), jnp.float32)
    strange = jnp.array([[1, 7, 2, -1, 2, 3, 1, 1, 9], [3, 3, 2, 2, -5, 4, 4, 1, 2]], jnp.int32)
    plain = jnp.where((strange < 0) | (strange > 3), 0, strange)
    weight = jnp.ones((3, 4))
    runs = (
        lambda **options: ops.linear_attention(x, x, x, **options),
        lambda **options: ops.delta_rule(x, x, x, 0.1 * x[..., 0], **options),
        lambda **options: ops.linear_scan(0.5 * jnp.ones_like(x), x, **options),
        lambda **options: ops.short_conv(x[:, :, 0], weight, **options),
    )
    for run in runs:
        got, want = (run(segment_ids=ids, num_segments=3, impl=impl) for ids in (strange, plain))
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert not np.any(np.asarray(got[0])[np.asarray(plain) == 0])
