"""HiPPO: linear systems that remember the past of a signal as coefficients in a basis, online and in constant size.

Matrices are computed once in float64 with NumPy; only `discretize_diagonal` and `log_uniform_steps` meet JAX arrays.
HiPPO, arXiv 2008.07669; S4, arXiv 2111.00396; S4D, arXiv 2206.11893; How to Train Your HiPPO, arXiv 2206.12037.
"""

from seqmodels.ops.hippo.delay import delay_error as delay_error
from seqmodels.ops.hippo.discretize import discretize as discretize
from seqmodels.ops.hippo.discretize import discretize_diagonal as discretize_diagonal
from seqmodels.ops.hippo.generalized import transition_of_basis as transition_of_basis
from seqmodels.ops.hippo.measures import Measure as Measure
from seqmodels.ops.hippo.measures import transition as transition
from seqmodels.ops.hippo.nplr import diagonal as diagonal
from seqmodels.ops.hippo.nplr import nplr as nplr
from seqmodels.ops.hippo.nplr import rank_correction as rank_correction
from seqmodels.ops.hippo.reconstruct import basis as basis
from seqmodels.ops.hippo.reconstruct import memory as memory
from seqmodels.ops.hippo.reconstruct import reconstruct as reconstruct
from seqmodels.ops.hippo.reconstruct import sample_lags as sample_lags
from seqmodels.ops.hippo.reconstruct import scaled_memory as scaled_memory
from seqmodels.ops.hippo.timescale import log_uniform_steps as log_uniform_steps
from seqmodels.ops.hippo.timescale import step_for_lag as step_for_lag
from seqmodels.ops.hippo.timescale import timescale as timescale
