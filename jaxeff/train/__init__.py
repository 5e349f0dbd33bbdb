"""Training: an `Experiment` goes in, a folder with metrics and checkpoints comes out."""
