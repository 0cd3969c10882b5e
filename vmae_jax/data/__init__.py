"""Host side of the data: files in, uint8 NumPy batches out. No JAX in this package."""
