"""Who hears of a run's progress: the console and Weights & Biases, both optional listeners of the same events."""
