"""Test-wide settings: eight CPU devices, quick compilation, and jaxtyping signatures are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
# Most of the suite's time is LLVM's. The programs are those of users; only LLVM optimises them less.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

from tests.signatures import install

jax.config.update("jax_num_cpu_devices", 8)
install("seqmodels")
