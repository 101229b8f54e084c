"""Which tests run when: the order of files, what `--fast` leaves out, and what runs on demand (`-m slow`)."""

from __future__ import annotations

# Files that train for long, count whole tables or start processes, the longest first. Workers are given them in this
# order, so that no long one is begun last; --fast leaves them out.
LONG = (
    "tests/test_recipes.py",
    "tests/training/test_resume.py",
    "tests/lab/tables/test_reproduce.py",
    "tests/test_full_recipes.py",
    "tests/lab/compare/test_compare.py",
    "tests/commands/test_cli.py",
    "tests/training/test_step.py",
    "tests/training/test_sharded.py",
    "tests/test_stranger.py",
    "tests/reliability/test_signals.py",
    "tests/reliability/test_full_disk.py",
    "tests/reliability/test_damaged_run_folders.py",
    "tests/reliability/test_damaged_checkpoints.py",
    "tests/reliability/test_code_and_secrets.py",
    "tests/reliability/test_templates.py",
    "tests/reliability/test_hostile_data.py",
    "tests/reliability/test_what_it_trained_on.py",
    "tests/lab/compare/test_cluster.py",
    "tests/test_composition.py",
    "tests/test_scripts.py",
    "tests/test_bench_curves.py",
    "tests/test_bench_whole.py",
    "tests/export/test_merge.py",
    "tests/export/test_merge_streamed.py",
    "tests/model/test_trained.py",
    "tests/lab/runs/test_digest.py",
    "tests/export/test_peft_format.py",
    "tests/export/test_reload.py",
    "tests/export/test_export_plain.py",
    "tests/export/test_export_gguf.py",
    "tests/export/test_doctor.py",
    "tests/lab/tables/test_count_tables.py",
    "tests/lab/compare/test_scaled.py",
    "tests/evaluation/test_generate.py",
    "tests/export/test_peft_beside.py",
    "tests/contracts/test_analyses.py",
    "tests/lab/tables/test_tiers.py",
    "tests/methods/optim/test_state_bytes.py",
    "tests/export/test_merged_folder.py",
    "tests/model/test_families.py",
    "tests/model/test_stream.py",
    "tests/model/test_packed.py",
    "tests/commands/test_json.py",
    "tests/test_bed.py",
    "tests/test_models_page.py",
    "tests/training/test_patience.py",
    "tests/training/test_find_lr.py",
    "tests/training/test_best.py",
    "tests/training/test_trackers.py",
    "tests/training/test_earlier.py",
    "tests/training/test_going_on.py",
    "tests/training/test_stop_below.py",
    "tests/training/test_gradient_sum.py",
    "tests/model/test_random_weights.py",
)
# What else --fast leaves out: rooms and files that are quick each and long together, or that start processes.
ASIDE = (
    "tests/test_docs.py::test_what_a_script_writes_is_current",
    "tests/contracts/test_optimizers.py::test_it_lowers_a_quadratic",
    *(
        f"tests/contracts/test_{axis}.py::test_a_resumed_run"
        for axis in ("allocators", "restarts", "selectors")
    ),
    "tests/contracts/test_restarts.py::test_a_restart_leaves_the_function_unchanged",
    *(f"tests/contracts/test_{of}.py" for of in ("block_parameters", "sharded", "virtual_tokens")),
    *(
        f"tests/{room}/"
        for room in ("lab", "reliability", "evaluation", "commands", "export", "training", "model")
    ),
    "tests/test_package.py",
    "tests/test_attention.py",
    "tests/test_planning.py",
    "tests/test_snippets.py",
    "tests/recipe/test_commands.py",
    "tests/recipe/test_fuzz.py",
    "tests/recipe/test_resolved.py::test_every_shipped_recipe",
    "tests/data/test_order_and_pack.py",
    "tests/methods/objectives/test_classify.py",
    "tests/methods/adapters/test_xlora.py",
    "tests/methods/allocate/test_dylora.py",
    "tests/test_grid.py::test_a_cell_is_what_happened",
    "tests/test_board.py::test_the_board_runs",
)
# Of those, what --fast runs all the same: one recipe from training to merge, and what no training is needed for.
KEPT = (
    *(f"tests/test_recipes.py::test_{name}" for name in ("a_smoke_recipe_lasts", "every_method_has")),
    "tests/test_recipes.py::test_a_smoke_recipe_learns[dora]",
    "tests/test_recipes.py::test_every_method_resumes_unbroken[dora]",
    "tests/test_recipes.py::test_a_finished_adapter_is_the_trained_function[dora]",
    "tests/test_recipes.py::test_every_method_merges_or_says_that_it_cannot[dora]",
    "tests/commands/test_cli.py::test_there_are_these_options_and_no_others",
    "tests/test_full_recipes.py::test_a_full_recipe_validates",
    "tests/test_scripts.py::test_every_script_has_a_test",
)
# --fast runs each case of a test on the first of these storage formats that it has, or else on its first.
STORAGES = ("nf4_reference", "none")

# What runs on demand for what it takes.
# File -> start of a test, within its brackets too -> what proves the same in the daily suite.
ON_DEMAND = {
    "tests/reliability/test_folders_of_others.py": {
        "test_a_report_of_an_own_folder_is_written_again_whatever_of_it_is_gone[found": "the sweep's",
        "test_a_report_of_an_own_folder_is_written_again_whatever_of_it_is_gone[compared": "the sweep's",
    },
    "tests/data/test_selecting.py": {
        "test_gradients_of_several_checkpoints": "test_features_of_runs_are_their_mean",
    },
    "tests/data/test_augment.py": {
        "test_a_run_is_asked_as_it_was_taught": "test_a_killed_command_goes_on_to_the_same_bytes",
    },
    "tests/methods/data_selection/test_tarot.py": {
        "test_of_its_own_size_it_stops": "test_layers_are_taken_whole_and_the_last_by_potential",
    },
    "tests/model/test_trained.py": {
        "test_biases_train_beside_every_adapter": "the biases of tests/contracts/test_adapters.py",
    },
    "tests/lab/tables/test_reproduce.py": {
        "test_no_number_of_any_table": "six of the tables",
        "test_the_pages_of_tables_are_current": "six of the tables",
    },
    "tests/test_docs.py": {
        "test_what_a_script_writes_is_current[choosing_page": "the other pages",
    },
    "tests/test_full_recipes.py": {
        "test_a_full_table_is_sized_without_network[qlora_mmlu": "the other tables",
        "test_a_full_table_is_sized_without_network[lora_sb": "the other tables",
        "test_every_row_of_a_full_table_that_has_a_recipe_can_be_planned[peft": "the others",
        "test_every_row_of_a_full_table_that_has_a_recipe_can_be_planned[randlora": "the others",
    },
    "tests/test_scripts.py": {
        "test_bench_memory_asks_a_fresh_process": "what such a process does is a test beside it",
        "test_bench_train_puts_methods_beside": "both steps on equal losses",
        "test_bench_train_draws_a_curve": "both steps on equal losses",
        "test_bench_train_times_both_steps_on_equal_losses_and_records_it[gsm8k": "random rows",
        "test_make_beds_makes": "tests/test_bed.py",
        "test_gpu_check_rehearses": "going on after a failure, in the same file",
        "test_same_bytes_finds": "test_recipes, which compares bytes of every method",
    },
    "tests/commands/test_posterior.py": {
        "test_what_can_have_no_posterior": "the refusals of tests/evaluation/test_posterior.py",
    },
    "tests/commands/test_profile.py": {
        "test_a_run_goes_on_with_a_profile": "a profiled run trains the same bytes",
    },
    "tests/training/test_sharded.py": {
        "test_two_processes_that_keep": "contracts/test_sharded.py, in one process",
        "test_each_process_keeps_half": "contracts/test_sharded.py, in one process",
        "test_all_processes_ask": "contracts/test_sharded.py, in one process",
        "test_a_run_that_": "test_resume.py",
        "test_a_checkpoint_holds": "contracts/test_sharded.py, in one process",
    },
    "tests/lab/compare/test_compare.py": {
        "test_two_recipes_are_trained": "the same with a stand-in for the training",
    },
    "tests/lab/compare/test_cluster.py": {
        "test_a_call_that_was_cut_off": "an interruption, and the same call goes on",
        "test_local_jobs_give_what": "an interruption, and the same call goes on",
        "test_a_job_whose_time_is_over": "an interruption, and the same call goes on",
        "test_an_interruption_lets_jobs_save_and_the_same_call_goes_on[slurm": "local",
    },
    "tests/lab/runs/test_on_ray.py": {
        "test_a_sweep_on_a_ray_cluster": "the same against a stand-in of Ray's library",
    },
    "tests/lab/runs/test_digest.py": {
        "test_what_is_imported_in_a_process": "the digest of the same code elsewhere",
    },
    "tests/training/test_resume.py": {
        "test_cut_off_and_resumed_is_unbroken[optimizer=paged": "its smoke recipe",
        "test_cut_off_and_resumed_is_unbroken[init=gaussian": "their smoke recipes",
        "test_cut_off_and_resumed_is_unbroken[adapter.method=dora": "its smoke recipe",
        "test_cut_off_and_resumed_is_unbroken[init.method=pissa": "its smoke recipe",
        "test_cut_off_and_resumed_is_unbroken[model.activation_checkpointing": "int8's recipe",
        "test_cut_off_and_resumed_is_unbroken[trainable={weights: full, update: s": "master",
        "test_stopped_twice": "stopped once",
        "test_biases_that_train_resume_unbroken[quantization=int8": "biases on none",
        "test_biases_that_train_resume_unbroken[trainable.update": "biases on none",
        **{
            f"test_updates_in_the_backward_pass_resume_unbroken[{name}": "the other optimizers"
            for name in ("apollo", "fira", "lion", "paged", "sgd")
        },
    },
    "tests/training/test_patience.py": {
        "test_an_interruption_does_not_move_the_end[8": "[6]",
        "test_scoring_tasks_again_and_again": "tasks leave bytes alone, beside it",
    },
    "tests/training/test_stop_below.py": {
        "test_an_interruption": "an interruption before patience ends a run",
        "test_a_target_that_is_not_reached": "the first step below, and an interruption",
    },
    "tests/test_composition.py": {
        "test_what_passes_the_check_trains_resumes_and_merges_or_refuses[3": "0, 1 and 2",
        "test_what_passes_the_check_trains_resumes_and_merges_or_refuses[4": "0, 1 and 2",
    },
    "tests/test_attention.py": {
        "test_no_tensor_of_an_8k_document_is_larger_than_a_block_of_scores[0": "[512]",
        "test_short_and_long_documents_share_a_row[100-2.0-F": "[100-2.0-True]",
        "test_short_and_long_documents_share_a_row[0-2.0": "[100-2.0-True]",
        "test_short_and_long_documents_share_a_row[100-None": "[0-None-True]",
    },
    "tests/methods/optim/test_state_bytes.py": {
        "test_fira_and_apollo_take_as_much_as_galore[apollo-1B": "130M",
        "test_fira_and_apollo_take_as_much_as_galore[fira-1B": "130M",
        "test_fira_and_apollo_take_as_much_as_galore[apollo-350M": "130M",
        "test_fira_and_apollo_take_as_much_as_galore[fira-350M": "130M",
    },
    "tests/lab/compare/test_scaled.py": {
        "test_fewer_seeds": "a claim that holds",
        "test_other_metrics": "a claim that holds",
    },
    "tests/export/test_merge.py": {
        "test_the_record_shows_nearest": "the record of each rounding, beside it",
    },
    "tests/export/test_merge_added.py": {
        "test_two_runs": "its parts: the sums of two models, beside it",
    },
    "tests/commands/test_cli.py": {
        "test_merging_onto_the_original_weights_misses": "export/test_merge.py",
    },
    "tests/lab/report/test_page.py": {
        "test_a_hundred_thousand": "a finished run is told",
    },
    "tests/evaluation/test_divided.py": {
        "test_two_processes_score": "test_gradient_sum.py has two processes; dividing has tests of its own",
        "test_each_process_does": "test_gradient_sum.py has two processes; dividing has tests of its own",
        "test_what_fails_in_one": "test_gradient_sum.py has two processes; dividing has tests of its own",
        "test_a_signal_at_one": "test_gradient_sum.py has two processes; dividing has tests of its own",
        "test_processes_that_go_in": "test_gradient_sum.py has two processes; dividing has tests of its own",
        "test_processes_that_asked": "test_gradient_sum.py has two processes; dividing has tests of its own",
    },
    "tests/contracts/test_optimizers.py": {
        "test_it_lowers_a_quadratic[mezo": "its own file",
        "test_it_lowers_a_quadratic[quzo": "its own file",
        "test_it_lowers_a_quadratic[just_one_byte": "its own file",
    },
    "tests/training/test_recomputing.py": {
        "test_a_run_says_and_records": "what is chosen, beside it",
    },
    "tests/training/test_going_on.py": {
        "test_an_extended_run_resumes_unbroken[2": "[4]",
        "test_an_extended_run_resumes_unbroken[6": "[4]",
    },
    "tests/training/test_reads.py": {
        "test_a_step_is_read_once[dropout": "[lora]",
        "test_a_step_is_read_once[no clipping": "[lora]",
        "test_a_step_is_read_once[dora": "[lora]",
    },
    "tests/training/test_trackers.py": {
        "test_a_tracker_is_sent_every_step_and_goes_on_where_it_was[trackio": "[tensorboard]",
        "test_a_tracker_is_sent_every_step_and_goes_on_where_it_was[mlflow": "[tensorboard]",
        "test_a_tracker_that_raises_is_told_once_and_left[tensorboard-end": "[tensorboard-log]",
    },
    "tests/training/test_find_lr.py": {
        f"test_any_recipe_can_be_swept[{name}": "the other recipes"
        for name in ("dpo", "lisa", "relora", "paged")
    },
    "tests/training/test_step.py": {
        f"test_a_short_last_step_is_the_same_on_two_processes_as_on_one[5-{name}": "[7]"
        for name in ("dropout", "orthogonality", "hidden", "load")
    },
    "tests/reliability/test_numbers.py": {
        "test_a_tensor_that_is_no_number_is_not_saved[weight-inf": "[weight-nan] and [moment--inf]",
        "test_a_tensor_that_is_no_number_is_not_saved[weight--inf": "[weight-nan] and [moment--inf]",
        "test_a_tensor_that_is_no_number_is_not_saved[moment-nan": "[weight-nan] and [moment--inf]",
        "test_a_tensor_that_is_no_number_is_not_saved[moment-inf": "[weight-nan] and [moment--inf]",
    },
    "tests/test_bed.py": {
        "test_a_model_learns_from_random_weights[fira": "[galore]",
        "test_a_model_learns_from_random_weights[frugal": "[galore]",
        "test_a_model_learns_from_random_weights[apollo": "[galore]",
    },
    "tests/test_models_page.py": {
        "test_a_row_is_what_is_found[rwkv": "[gpt2]",
    },
    "tests/export/test_export_gguf.py": {
        f"test_transformers_computes_the_run_from_the_merged_file[{name}": "[llama] and [gemma2]"
        for name in ("mistral", "qwen2", "qwen3")
    },
    "tests/training/test_numerics.py": {
        "test_on_a_cpu_a_deterministic_training_has_the_same_losses[dora": "[lora]",
    },
}
