"""The table of a model before and after its weights were changed."""


def before_and_after(before, after, experiment, out: str) -> None:
    """Prints it. before, after: as `jaxeff.train.rewrite` measures them."""
    score = experiment.objective.score

    def row(name: str, what: str, form) -> str:
        return f"{name:<24}" + "".join(f"{form(getattr(m, what)):>16}" for m in (before, after))

    print(f"{'':<24}{'before':>16}{'after':>16}")
    for name, what in (("parameters", "parameters"), ("trained", "trained"), ("bytes", "bytes")):
        print(row(name, what, "{:,}".format))
    print(row("bits per weight", "bits", "{:.2f}".format))
    print(row(f"validation {score.name.replace('_', ' ')}", "score", lambda x: "-" if x is None else f"{x:.4f}"))
    print(row("decoding, ms a token", "decode", lambda s: f"{1000 * s:.3f}"))
    print(f"written to {out}")
