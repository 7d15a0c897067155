"""seqmodels: efficient sequence architectures in JAX, one tested family behind one interface."""

__version__ = "0.1.0"
