"""Programs of the peers' own environment (`make bench-env`), which answer over a pipe; nothing here imports jaxeff."""
