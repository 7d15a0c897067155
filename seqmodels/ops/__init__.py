"""Mathematics on arrays: the recurrences and attention cores. No Flax in here."""

from seqmodels.ops.attention import attention as attention
from seqmodels.ops.decode_step import decode_step as decode_step
from seqmodels.ops.delta_rule import delta_rule as delta_rule
from seqmodels.ops.dispatch import interpret_kernels as interpret_kernels
from seqmodels.ops.linear_attention import NormalizedState as NormalizedState
from seqmodels.ops.linear_attention import linear_attention as linear_attention
from seqmodels.ops.linear_attention import normalized_linear_attention as normalized_linear_attention
from seqmodels.ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from seqmodels.ops.linear_scan import linear_scan as linear_scan
from seqmodels.ops.linear_ssm import dplr_kernel as dplr_kernel
from seqmodels.ops.linear_ssm import dplr_system as dplr_system
from seqmodels.ops.linear_ssm import linear_ssm as linear_ssm
from seqmodels.ops.linear_ssm import ssm_kernel as ssm_kernel
from seqmodels.ops.long_conv import long_conv as long_conv
from seqmodels.ops.rotary import rotary as rotary
from seqmodels.ops.scan import scan_tokens as scan_tokens
from seqmodels.ops.selective_scan import selective_scan as selective_scan
from seqmodels.ops.short_conv import short_conv as short_conv
