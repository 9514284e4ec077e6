"""Tests that take long and have a quicker one of their kind: left to `make test-all`, with what stays instead.

By file, the beginnings of test names. docs/testing.md has the matrices that are cut inside their modules.
"""

from collections.abc import Mapping

LEFT_TO_TEST_ALL: Mapping[str, Mapping[str, str]] = {
    "bench/contenders/test_contenders.py": {
        "test_a_sequential_with_clipping": "a model of its own, with all contenders",
    },
    "commands/test_bench_command.py": {
        "test_a_stopped_comparison_ends_at_once_with_130_and_leaves_nothing[SIGTERM": "SIGINT",
        "test_nothing_outlives_a_killed_comparison": "run/test_leftovers.py kills runs",
    },
    "commands/test_verify_command.py": {
        "test_plans_with_slices_and_stages_are_verified_layer_by_layer[slices": "pipeline",
    },
    "launch/hosts/test_bad_weather.py": {
        "test_a_worker_lost_in_a_step_is_named_on_all_hosts[SIGSTOP-3": "SIGSTOP-0",
        "test_a_worker_lost_in_a_step_is_named_on_all_hosts[error-3": "error-0",
        "test_a_worker_lost_in_a_step_is_named_on_all_hosts[SIGKILL-3": "SIGKILL-0",
        "test_a_worker_lost_in_a_step_is_named_by_all_others_of_its_host[SIGSTOP": "SIGKILL",
        "test_a_link_that_goes_down_in_a_step_ends_all_workers_in_time[2": "another link",
    },
    "launch/hosts/test_torchrun.py": {
        "test_worker_0_writes_the_trace_of_all": "commands/test_trace_command.py",
    },
    "launch/probe/test_choose_plan.py": {
        "test_auto_gives_the_digest_of_one_worker[gpt": "the MLP",
        "test_a_number_of_workers_is_kept[3": "two workers",
    },
    "parallel/lazy_init/test_lazy_replay.py": {
        "test_a_quarter_fits_where_the_whole_does_not[drawn_twice": "plain",
        "test_a_quarter_fits_where_the_whole_does_not[functional": "plain",
    },
    "schedule/test_checker.py": {
        "test_every_schedule_up_to_8_workers_4_chunks_32_shards": "generated schedules, by hypothesis",
    },
    "setup/test_memory_limit.py": {
        "test_slices_train_within_the_limit": "stages within the limit",
    },
    "system/test_device.py": {
        "test_no_gpu_is_refused_with_the_cure[torchrun": "the command and the API",
        "test_workers_with_memories_of_their_own_give_one_workers_digest[cnn": "three workers, the MLP",
        "test_workers_with_memories_of_their_own_give_one_workers_digest[gpt": "three workers, the MLP",
        "test_workers_with_memories_of_their_own_give_one_workers_digest[mlp-2": "three workers",
    },
    "transparency/test_hugging_face.py": {
        "test_stages_leave_the_bits_and_slices_have_one_digest[bert": "gpt2",
        "test_stages_leave_the_bits_and_slices_have_one_digest[llama": "gpt2",
        "test_stages_leave_the_bits_and_slices_have_one_digest[vit": "gpt2",
    },
}


def is_left(test_id: str) -> bool:
    """Whether a test, by its id below `tests/`, is left to `make test-all`."""
    file, _, name = test_id.partition("::")
    return name.startswith(tuple(LEFT_TO_TEST_ALL.get(file, ())))
