"""Mathematics on arrays: the recurrences and attention cores. No Flax in here."""

from seqmodels.ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
