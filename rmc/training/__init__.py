"""Training: update step, loop, checkpoints and metrics."""
