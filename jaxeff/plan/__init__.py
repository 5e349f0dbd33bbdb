"""What a training step costs on a TPU that nobody has rented yet: compiled ahead of time, and read."""
