"""The model in JAX: scans, forward pass, training."""
