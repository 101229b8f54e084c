"""Keys of other toolkits that have none here: what to do instead, or why nothing."""

from __future__ import annotations

# (what to say whatever the value, the keys it is said of)
_SENTENCES = (
    (
        "settings stand in sections of their own here: model, data, adapter, optimizer, schedule, train and others",
        "training_args training_arguments args hyperparameters hparams peft_config sft_config trainer_config",
    ),
    (
        "rows are held out by their share; write data.split: SHARE, which is 0.05 for 5 %",
        "validation_split_percentage",
    ),
    (
        "a setting of the process; name the run folder with lrft train --out FOLDER",
        "output_dir out_dir save_dir run_name overwrite_output_dir logging_dir log_dir project_dir exp_name "
        "experiment_name",
    ),
    (
        "a recipe does not say so; continue a run with lrft train RUN --resume",
        "resume_from_checkpoint resume ckpt auto_resume_from_checkpoints load_checkpoint_path",
    ),
    (
        "not in lrft: processes (torchrun) share the data, and with train.shard_base: true the frozen weights too; "
        "accelerate's own configuration may ask for FSDP 2",
        "deepspeed fsdp fsdp_config deepspeed_config fsdp_transformer_layer_cls_to_wrap tensor_parallel_size "
        "context_parallel_size ddp_backend sequence_parallel_degree pipeline_parallel_size "
        "ddp_find_unused_parameters ddp_timeout ddp local_rank device_map gpu_memory_limit max_memory "
        "use_fsdp parallelism_config",
    ),
    (
        "with model.experts: split the matrices of experts are layers too; name them in adapter.targets, such as "
        "[experts.*.gate_up_proj]",
        "target_parameters",
    ),
    (
        "the section privacy says it, by its noise or its epsilon, its clip and its delta",
        "noise_multiplier max_per_sample_grad_norm per_example_max_grad_norm per_sample_max_grad_norm target_epsilon "
        "target_delta dp dp_sgd differential_privacy use_dp",
    ),
    (
        "remove it, checkpointed blocks are always recomputed without reentrance",
        "gradient_checkpointing_kwargs",
    ),
    (
        "write both as optimizer.beta1 and optimizer.beta2",
        "betas adam_betas optim_args",
    ),
    (
        "write the optimizer's settings in its section, optimizer: {method: NAME, lr: RATE}",
        "optim_kwargs",
    ),
    (
        "write the schedule's settings in its section, such as schedule: {method: cosine, floor: 0.1}",
        "lr_scheduler_kwargs scheduler_kwargs scheduler_specific_kwargs",
    ),
    (
        "the smallest rate is a share of optimizer.lr here; write schedule.floor: SHARE",
        "min_lr lr_min min_learning_rate",
    ),
    (
        "name what trains beside the adapter as patterns of parameters, trainable: ['*embed_tokens*', "
        "'*lm_head*']",
        "modules_to_save lora_modules_to_save additional_target additional_trainable_modules "
        "extra_trainable_modules",
    ),
    (
        "name what trains as patterns of parameters, such as trainable: ['*.31.*']",
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules trainable_layers freeze_layers "
        "num_layers_unfrozen",
    ),
    (
        "name layers by their numbers, adapter.layers: 16-, or by patterns, such as adapter.targets: "
        "['layers.0.*.q_proj']",
        "layers_pattern lora_layers num_layers lora_num_layers",
    ),
    (
        "remove it, the layout of every layer is seen",
        "fan_in_fan_out lora_fan_in_fan_out",
    ),
    (
        "remove it, it says nothing of a training",
        "inference_mode use_cache base_model_name_or_path peft_version auto_mapping do_train do_predict "
        "model_type tokenizer_type is_llama_derived_model is_mistral_derived_model strict "
        "remove_unused_columns label_names low_cpu_mem_usage use_fast tokenizer_use_fast tokenizer_legacy "
        "megatron_config bnb_4bit_quant_storage llm_int8_threshold llm_int8_skip_modules "
        "llm_int8_has_fp16_weight",
    ),
    (
        "tokens are those of the tokenizer; save one that has them and name it as model.tokenizer",
        "special_tokens pad_token eos_token bos_token unk_token added_tokens_overrides",
    ),
    (
        "name new tokens by their texts, model.add_tokens: ['<|call|>'], or model.add_tokens: {special: [...], plain: "
        "[...]}; the rows for them train, and no others",
        "tokens added_tokens new_tokens new_special_tokens add_special_tokens additional_special_tokens",
    ),
    (
        "rows of new tokens train beside any adapter, model.add_tokens: [TEXT]; those of tokens that are there already "
        "train alone, as an adapter of their own",
        "trainable_token_indices",
    ),
    (
        "the vocabulary grows by what model.add_tokens names; with it, model.resize: 64 pads it to a multiple",
        "resize_vocab resize_token_embeddings resize_token_embeddings_to_32x",
    ),
    (
        "write data.format: chat, which renders by the tokenizer's own template, and for another one data.template: "
        "NAME or FILE",
        "chat_template prompt_template chat_template_jinja chat_template_path custom_chat_template",
    ),
    ("write data.format.system: TEXT", "default_system"),
    (
        "what is learnt of a row follows from data.format; remove it",
        "response_template instruction_template instruction_part response_part roles_to_train train_on_eos "
        "train_on_eot field_messages message_property_mappings",
    ),
    (
        "one limit holds for the whole row; write train.max_length",
        "max_prompt_length max_completion_length max_target_length max_source_length max_new_length",
    ),
    (
        "remove it, rows are packed (train.packing) or padded to the longest of their micro-batch",
        "group_by_length pad_to_max_length pad_to_sequence_len pad_to_multiple_of length_column_name padding "
        "padding_side packing_strategy eval_packing eval_sample_packing sample_packing_group_size",
    ),
    (
        "tokens of an evaluation batch are counted, not rows; write eval.batch_tokens",
        "per_device_eval_batch_size eval_batch_size val_batch_size eval_accumulation_steps",
    ),
    (
        "write train.batch_size and train.gradient_accumulation; an optimizer step has their product in every "
        "process",
        "global_batch_size total_batch_size effective_batch_size auto_find_batch_size",
    ),
    (
        "no such tracker is here; write logging.wandb, logging.tensorboard, logging.mlflow or logging.trackio",
        "use_comet comet_project_name use_swanlab swanlab_project comet swanlab",
    ),
    (
        "write logging.tensorboard: true",
        "use_tensorboard",
    ),
    (
        "write logging.mlflow: PROJECT; the server is set by the variable MLFLOW_TRACKING_URI",
        "use_mlflow mlflow_tracking_uri",
    ),
    (
        "write logging.trackio: PROJECT; the rest is set by TRACKIO_* variables",
        "use_trackio trackio_space_id",
    ),
    (
        "name the project, logging.wandb: PROJECT; the rest is set by WANDB_* variables",
        "wandb_entity wandb_run_name wandb_name wandb_run_id wandb_mode wandb_watch wandb_log_model "
        "wandb_kwargs",
    ),
    (
        "the printed lines are counted in steps; write logging.every",
        "logging_strategy logging_first_step log_level log_every_n_steps disable_tqdm log_interval log_freq "
        "plot_loss include_num_input_tokens_seen",
    ),
    (
        "counts are in steps; write train.save_every: STEPS",
        "saves_per_epoch save_interval checkpoint_interval save_freq",
    ),
    (
        "counts are in steps; write train.eval_every: STEPS",
        "evals_per_epoch eval_interval val_interval eval_delay eval_on_start eval_freq",
    ),
    (
        "the best checkpoint is always kept, and its adapter in best/; write train.eval_every: STEPS, remove this",
        "load_best_model_at_end save_only_model save_safetensors",
    ),
    (
        "which way is better follows from the score that train.metric names; remove it",
        "greater_is_better",
    ),
    (
        "any score that is better counts; write train.patience: SCORES",
        "early_stopping early_stopping_threshold early_stopping_min_delta",
    ),
    (
        "name tasks in eval.tasks, for lrft eval, and for scores in training write train.eval_tasks_every: STEPS",
        "do_eval compute_metrics predict_with_generate do_bench_eval eval_metrics generation_config",
    ),
    (
        "nothing is uploaded; push the run's adapter folder with the hub's own command",
        "push_to_hub hub_model_id hub_strategy hub_private_repo push_to_hub_model_id",
    ),
    (
        "rows are read and tokenized by the run itself; remove it",
        "dataset_num_proc num_proc dataset_processes preprocessing_num_workers dataloader_num_workers "
        "num_workers dataloader_pin_memory overwrite_cache tokenized_path dataset_prepared_path "
        "dataset_kwargs dataloader_drop_last dataloader_prefetch_factor preprocessing_batch_size "
        "ignore_data_skip dataset_dir",
    ),
    (
        "the hub's folder is set by the variable HF_HOME; remove it",
        "cache_dir hf_home hf_hub_cache",
    ),
    (
        "rows are drawn anew in every epoch from train.seed; remove it",
        "shuffle shuffle_merged_datasets buffer_size shuffle_buffer_size curriculum_sampling",
    ),
    (
        "list the sources under data.train, each with a weight where its share is to be another than its rows'; "
        "data.mix says how weights become rows",
        "interleave_probs dataset_mixture dataset_weights",
    ),
    (
        "write data.dedup: exact, or near where rows that nearly repeat others go too",
        "dataset_exact_deduplication deduplicate deduplication",
    ),
    (
        "with offload.activations: disk the inputs of recomputed layers lie on a disk, with offload.weights: disk the "
        "frozen weights, with offload.optimizer: disk the optimizer's state",
        "activation_offloading enable_activation_offloading offload_folder offload_dir cpu_offload fsdp_cpu_offload "
        "offload_optimizer_device offload_param_device offload_optimizer offload_param",
    ),
    (
        "remove it, the loss is computed in chunks without keeping the logits",
        "cut_cross_entropy liger_fused_linear_cross_entropy",
    ),
    (
        "not in lrft; remove it",
        "use_unsloth unsloth use_unsloth_gc plugins callbacks fast_inference "
        "gpu_memory_utilization max_lora_rank lora_mlp_kernel lora_qkv_kernel lora_o_kernel xformers_attention "
        "flex_attention rope_theta overrides_of_model_config sliding_window s2_attention "
        "shift_attn upcast_layernorm upcast_lmhead_output mixture_of_depths use_llama_pro "
        "embeddings_skip_upcast lora_on_cpu torch_compile_backend torch_compile_mode "
        "layer_replication megatron_core auto_kernels optim_target_modules weight_only",
    ),
    (
        "the reference is the base model without its adapter; remove it",
        "ref_model ref_model_adapters ref_adapter_name model_adapter_name ref_model_quantization_bit "
        "precompute_ref_log_probs sync_ref_model force_use_ref_model",
    ),
    (
        "answers that the model draws are rewarded by rules (objective.rewards, each with a weight), not by a model; "
        "what is preferred is learnt from pairs (data.format: preference)",
        "reward_model reward_model_type target_kl reward_weights use_vllm",
    ),
)
REMARKS = {word: sentence for sentence, words in _SENTENCES for word in words.split()}
