"""What all configurations of PEFT have: fields that change no logits, and such as have one value that is understood."""

from jaxeff.interop.peft.modules import AdapterFields

# Names and versions; whether it trains; how the adapter is begun, where the base stays as it is; what belongs to fields that are
# refused.
HARMLESS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out",
        "inference_mode", "init_ia3_weights", "init_weights", "loftq_config", "lora_ga_config", "megatron_core", "peft_type",
        "peft_version", "qalora_group_size", "revision",
    }
)  # fmt: skip
ONLY = {
    "task_type": ("CAUSAL_LM",), "bias": ("none",), "lora_bias": (False,), "use_qalora": (False,), "use_bdlora": (False,),
    "layer_replication": ([],), "target_parameters": ([],), "trainable_token_indices": ([], {}), "alora_invocation_tokens": ([],),
    "megatron_config": (), "arrow_config": (), "kasa_config": (), "monteclora_config": (), "velora_config": (),
}  # fmt: skip


def restrict(fields: AdapterFields) -> None:
    """Raises UserError for what changes logits in ways that no transform here has."""
    for name, understood in ONLY.items():
        fields.only(name, *understood)
    if fields.any("modules_to_save"):
        raise fields.error(
            "modules_to_save", "are layers that were trained whole beside the adapter, which are not read"
        )
