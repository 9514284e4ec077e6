"""Tests that take long and have a quicker one of their kind: left to `make test-all`, with what stays instead.

By file, the beginnings of test names. docs/testing.md has the matrices that are cut inside their modules.
"""

from collections.abc import Mapping

LEFT_TO_TEST_ALL: Mapping[str, Mapping[str, str]] = {
    "bench/contenders/test_contenders.py": {
        "test_a_sequential_with_clipping": "a model of its own, with all contenders",
    },
    "commands/test_bench_command.py": {
        "test_a_stopped_comparison_ends_at_once_with_130_and_leaves_nothing": "run/test_leftovers.py stops runs",
        "test_nothing_outlives_a_killed_comparison": "run/test_leftovers.py kills runs",
    },
    "commands/test_verify_command.py": {
        "test_plans_with_slices_and_stages_are_verified_layer_by_layer[slices": "pipeline",
    },
    "launch/hosts/test_bad_weather.py": {
        "test_a_data_file_that_one_worker_does_not_find_ends_all_at_once[1-500": "the other host, and fewer steps",
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
    "launch/request/test_refusals.py": {
        "test_a_script_that_trains_while_it_is_imported_is_told_of_the_guard[the file": "the function",
        "test_a_script_that_trains_while_it_is_imported_is_told_of_the_guard[the command": "the function",
        "test_a_guarded_script_trains[the file": "the function",
    },
    "launch/run/test_leftovers.py": {
        "test_a_stopped_run_without_checkpoint_ends_at_once_with_130[2-0": "with loader workers",
        "test_a_kill_during_a_save_leaves_whole_checkpoints_only[command": "the leader, and a worker",
    },
    "parallel/lazy_init/test_lazy_replay.py": {
        "test_what_nobody_reads_is_drawn_in_pieces": "any subset gets the same values",
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
    "diagnose/test_stalls.py": {
        "test_a_worker_that_is_stopped_is_no_broken_link[2": "worker 0",
    },
    "transport/test_rendezvous.py": {
        "test_processes_meet_share_memory_of_zeros_and_are_connected_each_to_each[4": "two processes",
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
