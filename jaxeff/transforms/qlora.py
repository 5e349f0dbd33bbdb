"""Low-rank adapters on a base in four bits (Dettmers et al. 2023, "QLoRA"): `chain(NF4, LoRA)` by one name."""

import dataclasses

from jaxeff.transforms.lora import LoRA
from jaxeff.transforms.nf4 import NF4
from jaxeff.transforms.plan import Plan, chain
from jaxeff.transforms.rank import Rules


@dataclasses.dataclass(frozen=True)
class QLoRA:
    """Adapters beside the weights that `rules` match, which are rounded to NF4 with double quantization; adapters alone train.

    The settings are those of NF4 and LoRA. quantized: rules for the weights in four bits, None for those with adapters. Errors are
    those of the two.
    """

    rules: Rules = ("blocks/.*/mixer/(q|k|v|o)", "blocks/.*/mlp/(up|gate|down)")
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    quantized: tuple[str, ...] | None = None
    block: int = 64
    double: bool = True

    def __post_init__(self):
        self.parts  # noqa: B018  checks the settings

    @property
    def parts(self) -> chain:
        """The two transforms."""
        same = tuple(rule if isinstance(rule, str) else rule[0] for rule in self.rules)
        return chain(
            NF4(same if self.quantized is None else self.quantized, self.block, self.double),
            LoRA(self.rules, self.rank, self.alpha, self.dropout),
        )

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        return self.parts.plan(specs)
