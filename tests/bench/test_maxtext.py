"""What of the comparison with MaxText can be tested without it: its options for a model of ours, its kernels, what it answers."""

import dataclasses

import pytest

from jaxeff.bench.maxtext import options, told
from jaxeff.core.errors import UserError
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.plan.hlo import Module
from jaxeff.train.config_file import load

CALL = (
    '  %splash_mha_dkv.1 = bf16[4,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call",'
    ' metadata={op_name="jit(train_step)/splash_mha_dkv/pallas_call" stack_frame_id=3}\n'
)


def test_a_config_of_ours_is_the_same_model_there():
    found = options(load("configs/tpu/gqa_1b.py"), "v5e:4x4", "minimal", "--flag=true")
    names = ("emb_dim", "num_query_heads", "num_kv_heads", "mlp_dim", "num_decoder_layers")
    assert [found[f"base_{name}"] for name in names] == [2048, 16, 4, 8192, 16]
    assert (found["head_dim"], found["vocab_size"], found["logits_via_embedding"]) == (128, 32768, True)
    assert (found["max_target_length"], found["per_device_batch_size"]) == (2048, 4)
    assert (found["ici_data_parallelism"], found["ici_fsdp_parallelism"]) == (2, 8)
    assert (found["remat_policy"], found["compile_xla_flags"]) == ("minimal", "--flag=true")


def test_models_that_it_has_not_are_refused():
    experiment = load("configs/tpu/gqa_1b.py")
    with pytest.raises(UserError, match="8 chips over mesh.data and mesh.fsdp"):
        options(experiment, "v5e:2x4", "full", "")
    for block in (Block(GQA(window=(128, 0))), Block(GQA(), MLP(activation="gelu")), Block(GQA(), None)):
        other = dataclasses.replace(experiment, model=LM(32768, 2048, (Stage((block,), 16),)))
        with pytest.raises(UserError, match="causal GQA and a gated MLP"):
            options(other, "v5e:4x4", "full", "")


def test_its_attention_kernels_tell_what_they_multiply():
    text = f"HloModule step\n\nENTRY %main (x: bf16[4,16]) -> bf16[4,16] {{\n{CALL}}}\n"
    (call,) = Module(told(text, 1000, 128)).computations["main"]
    assert call.operation == "jit(train_step)/splash_mha_dkv/pallas_call/kernel_flops_1000_width_128"
    assert told(text.replace("splash_mha", "gmm"), 1000, 128) == text.replace("splash_mha", "gmm")
