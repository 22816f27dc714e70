"""Fast engines for Griffin / RecurrentGemma that share no numerics with the reference."""
