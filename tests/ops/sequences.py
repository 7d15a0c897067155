"""The meaning of ``segment_ids`` by brute force: take the tokens of every document or segment out, run them alone."""

from __future__ import annotations

import numpy as np


def documents_of(ids):
    """Lists of token indices of the documents of one row, in order."""
    found, last = [], 0
    for t, segment in enumerate(ids):
        if segment == 0:
            continue
        if segment != last:
            found.append([])
        found[-1].append(t)
        last = segment
    return found


def run_alone(run, inputs, state, ids, num_segments=None):
    """``run([x [n,...]], state [...]) -> (out [n,...], state)`` over every document or segment of ``ids [B,T]``.

    `inputs` are ``[B,T,...]``, `state` ``[B,...]`` or ``[B,S,...]``. Returns outputs (zero at padding) and the state.
    """
    ids, state = np.asarray(ids), np.array(state)
    out = None
    for row in range(ids.shape[0]):
        if num_segments is None:
            parts = documents_of(ids[row])
        else:
            parts = [np.flatnonzero(ids[row] == s + 1) for s in range(num_segments)]
        for number, at in enumerate(parts):
            slot = (row,) if num_segments is None else (row, number)
            held = state[slot] if num_segments is not None or number == 0 else np.zeros_like(state[slot])
            y, state[slot] = run([x[row, at] for x in inputs], held)
            if out is None:
                out = np.zeros((*ids.shape, *y.shape[1:]), y.dtype)
            out[row, at] = y
    return out, state


def insert_padding(inputs, ids, at):
    """A padding token of rubbish (7.0) before every index in `at`: ``(inputs, ids, kept)``."""
    kept = np.setdiff1d(np.arange(ids.shape[1] + len(at)), np.asarray(at) + np.arange(len(at)))
    padded = [np.insert(np.asarray(x), at, 7.0, axis=1) for x in inputs]
    return padded, np.insert(np.asarray(ids), at, 0, axis=1), kept
