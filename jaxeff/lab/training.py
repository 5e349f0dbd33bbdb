"""One training run of an ablation, and what is kept of it."""


def train(part, workdir, prepared, progress):
    raise NotImplementedError
