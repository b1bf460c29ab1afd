"""Callbacks that show or store the progress of a run: console, Weights & Biases, TensorBoard, profiler."""
