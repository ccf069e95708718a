"""What is learned: samplers, corpora and environments."""
