"""What `make test` leaves to `make thorough`: of tests with many cases most, and tests that take long alone.

A plain `pytest` runs everything; with --quick or --thorough it runs one part, and both parts are the whole.
"""

import re
from zlib import crc32

MANY, EVERY = 3, 8  # of more cases than MANY, every eighth is quick
SAMPLED = re.compile(r"tests/(contracts|golden|interop|mixers|models|ops|sequence|train|transforms)/")
# Each takes more than some ten seconds, and something shorter that stays would fail with it in most cases.
LONG = re.compile(
    r"""
    test_no_state_per_token_at_any_time | test_memory_grows_with_time_not_its_square
    | interop/test_export.py | interop/.*::test_the_documented_script
    | bench/test_benchmarks.py::test_(transforms|generate)_without_a_peer
    | lab/test_bases.py | lab/test_browser.py | lab/test_copy.py
    | mixers/test_rwkv7.py::test_initial_values_by_depth
    | ops/test_attention.py::test_splash_kernel_on_each_device
    | sequence/test_models.py
    | train/test_adapted.py::test_no_stack_of_dense_or_merged_weights_in_the_step
    | train/test_kill.py::(test_killed_again_and_again|test_adapters_on_a_quantized_base_are_killed)
    | train/test_meshes.py
    | train/test_processes.py::test_(launch_starts_again|one_process_goes_on|four_processes)
    | train/test_resume.py::test_(every_part_of_the_state_comes_back|another_mesh)
    | train/test_rewrite.py::test_(a_transformed_run_is_a_run|runs_are_joined)
    | train/test_step.py::test_(mesh_does_not_change_the_losses|mesh_with_accumulation)
    | train/test_lomo.py::test_lomo_is_gradient_descent
    | transforms/test_multi_lora.py
    """,
    re.VERBOSE,
)


def thorough(items) -> set:
    """Those of the collected tests that `make thorough` runs."""
    left = {item for item in items if LONG.search(item.nodeid)}
    tests = {}  # their cases need not follow each other
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for name, cases in tests.items():
        if SAMPLED.match(name) and len(cases) > MANY:
            start = crc32(name.encode())  # so that no configuration is left out of every test
            left |= {case for i, case in enumerate(cases, start) if i % EVERY}
    return left
