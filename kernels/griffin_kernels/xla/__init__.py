"""The model in JAX: scans, forward pass, the engine with a state, training."""
