"""Callbacks that show or send a run's progress: the console, Weights & Biases, TensorBoard."""
