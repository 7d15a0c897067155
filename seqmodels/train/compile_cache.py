"""The persistent compilation cache: a second start of the same program compiles nothing."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def enable_compilation_cache() -> Path | None:
    """Turn the cache on, in ``$SEQMODELS_CACHE/jax`` (default ``~/.cache/seqmodels/jax``); returns where it is.

    A cache that is already configured (``JAX_COMPILATION_CACHE_DIR``) stays. ``SEQMODELS_CACHE=off`` turns it off.
    Do not call this before compiling ahead of time for another machine: such entries cannot be read back.
    """
    configured = jax.config.values["jax_compilation_cache_dir"]
    if configured:
        return Path(configured)
    root = os.environ.get("SEQMODELS_CACHE", "")
    if root == "off":
        return None
    path = (Path(root) if root else Path.home() / ".cache" / "seqmodels") / "jax"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    compilation_cache.reset_cache()  # something may have been compiled without it already
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path
