"""Jaxeff and others: its parts as modules of other frameworks, public checkpoints (`hf`, `bitsandbytes`) and adapters (`peft`) in
and out, models as files that run without it. One file or folder for each, loaded by who uses it."""
