"""What the Pallas kernels share: exact small algebra on one chunk, and the walk over chunks with the state in VMEM."""
