"""Test-wide settings: eight CPU devices, quick compilation, and jaxtyping signatures are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
# Most of the suite's time is LLVM's. The programs are those of users; only LLVM optimises them less.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

from tests.signatures import install

jax.config.update("jax_num_cpu_devices", 8)
install("seqmodels")


@pytest.fixture(autouse=True)
def no_foreign_kernels(request, monkeypatch):
    """``impl="auto"`` traces no kernels of other platforms, which takes time, except in tests that are about them."""
    folder = request.path.parent.name
    if folder not in ("ops", "distributed") and request.node.get_closest_marker("kernels") is None:
        monkeypatch.setattr("seqmodels.ops.dispatch.compilers", lambda: ())
