"""Mathematics on arrays: the recurrences and attention cores. No Flax in here."""
