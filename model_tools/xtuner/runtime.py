"""What XTuner's hooks and the rest of its runner come to in a recipe: logs, checkpoints, evaluation prompts, seed."""

from typing import Any

from model_tools.xtuner.data import note_template
from model_tools.xtuner.draft import NUMBER, SWITCH, TEXT, WHOLE, Part
from model_tools.xtuner.optimizer import Length
from model_tools.xtuner.values import Unknown, as_symbol, name_of, shown

# Hooks whose work is done here in any case.
DONE_ANYWAY = {
    "DatasetInfoHook", "ThroughputHook", "VarlenAttnArgsToMessageHubHook", "HFCheckpointHook", "IterTimerHook",
    "ParamSchedulerHook", "DistSamplerSeedHook", "RuntimeInfoHook",
}  # fmt: skip
BACKENDS = {
    "TensorboardVisBackend": "tensorboard", "WandbVisBackend": "wandb", "MLflowVisBackend": "mlflow",
    "ClearMLVisBackend": "clearml", "NeptuneVisBackend": "neptune", "DVCLiveVisBackend": "dvclive",
    "SwanlabVisBackend": "swanlab", "SwanLabVisBackend": "swanlab",
}  # fmt: skip
# What EvaluateChatHook generates with beside max_new_tokens, where a config does not say otherwise.
SAMPLING = {"do_sample": True, "temperature": 0.1, "top_p": 0.75, "top_k": 40}
HELD_OUT = "held-out rows are measured here by eval_file and eval_strategy"
# Parts that the runner takes and that change no setting while they have these values.
USUAL: dict[str, tuple[tuple[object, ...], str]] = {
    "load_from": ((), "its weights are not loaded; export-adapter reads an iter_N.pth"),
    "resume": ((False,), "an interrupted run resumes by itself (resume: auto)"),
    "launcher": (("none",), "processes are started by deepspeed or torchrun here"),
    "val_dataloader": ((), HELD_OUT),
    "val_evaluator": ((), HELD_OUT),
    "val_cfg": ((), HELD_OUT),
    "test_dataloader": ((), HELD_OUT),
    "test_evaluator": ((), HELD_OUT),
    "test_cfg": ((), HELD_OUT),
    "default_scope": (("mmengine", "xtuner"), "no counterpart here"),
    "runner_type": (("Runner", "FlexibleRunner"), "no counterpart here"),
    "auto_scale_lr": ((), "the learning rate is not scaled here"),
    "experiment_name": ((), "the folder of a run is output_dir"),
    "model_wrapper_cfg": ((), "no counterpart here"),
}


def read_runtime(config: Part, length: Length) -> None:
    """Set the keys on logs, checkpoints, evaluation prompts, seed and folder."""
    draft = config.draft
    _read_default_hooks(config, length)
    _read_custom_hooks(config)
    config.carry("work_dir", TEXT, "output_dir")
    _read_visualizer(config)
    _read_environment(config)
    level = config.get("log_level", TEXT, "log_level", "INFO")
    if level and level != "INFO":
        draft.settings["log_level"] = level.lower()
    if randomness := config.part("randomness"):
        randomness.carry("seed", WHOLE, "seed")
        if randomness.get("deterministic", SWITCH, "full_determinism"):
            draft.settings["full_determinism"] = True
        randomness.expect("diff_rank_seed", False)
        draft.note_rest(randomness)
    if processor := config.part("log_processor"):
        processor.take("by_epoch")
        processor.take("type")
        draft.note_rest(processor)
    sequence_parallel = config.get("sequence_parallel_size", WHOLE, "parallelism_config")
    if sequence_parallel and sequence_parallel > 1:
        draft.note(
            f"{config.shown('sequence_parallel_size', sequence_parallel)}: set parallelism_config: {{sp_backend: "
            f"deepspeed, sp_size: {sequence_parallel}}}; without it, divide gradient_accumulation_steps by "
            f"{sequence_parallel}"
        )
    for name, (usual, advice) in USUAL.items():
        if name in config.values:
            config.expect(name, *usual, advice=advice)


def _read_default_hooks(config: Part, length: Length) -> None:
    draft = config.draft
    # Source of the defaults: Runner.register_default_hooks.
    hooks = config.part("default_hooks") or Part({}, "default_hooks", draft)
    if "logger" in hooks.values and hooks.values["logger"] is None:
        hooks.take("logger")
        draft.note("default_hooks.logger = None: steps are logged here in any case")
    elif logger := hooks.part("logger") or Part({}, "default_hooks.logger", draft):
        logger.take("type")
        every = logger.get("interval", WHOLE, "logging_steps", 10)
        if every and every > 0:
            draft.settings["logging_steps"] = draft.steps_of(logger, "interval", every, "logging_steps")
        for name in ("log_metric_by_epoch", "ignore_last", "interval_exp_name"):
            logger.take(name)
        draft.note_rest(logger)
    if "checkpoint" in hooks.values and hooks.values["checkpoint"] is None:
        hooks.take("checkpoint")
        draft.settings["save_strategy"] = "no"
    else:
        _read_checkpoints(hooks.part("checkpoint") or Part({"interval": 1}, "default_hooks.checkpoint", draft), length)
    for name in list(hooks.values.keys() - hooks.taken):
        hook = hooks.values[name]
        if hook is None and name == "param_scheduler":
            draft.note("default_hooks.param_scheduler = None: XTuner never changes the learning rate then; "
                       "set lr_scheduler_type: constant")  # fmt: skip
        if hook is None or (isinstance(hook, dict) and name_of(hook.get("type")) in DONE_ANYWAY):
            hooks.take(name)
    draft.note_rest(hooks)


def _read_checkpoints(checkpoint: Part, length: Length) -> None:
    draft, settings = checkpoint.draft, checkpoint.draft.settings
    checkpoint.expect("type", *_usual(checkpoint.values.get("type"), "CheckpointHook"))
    by_epoch = checkpoint.get("by_epoch", SWITCH, "save_strategy", True)
    every = checkpoint.get("interval", NUMBER, "save_steps", -1, None if by_epoch else "save_steps")
    if every is not None and every <= 0:
        settings["save_strategy"] = "no"
        draft.note(f"{checkpoint.shown('interval', every)}: saves the last step alone, which is in final/ here")
    elif every is not None and not by_epoch:
        settings["save_steps"] = draft.steps_of(checkpoint, "interval", int(every), "save_steps")
    elif every is not None:
        _save_by_epoch(checkpoint, every, length)
    keeps = checkpoint.get("max_keep_ckpts", WHOLE, "save_total_limit", -1, at_top="save_total_limit")
    if keeps is not None:
        settings["save_total_limit"] = keeps if keeps > 0 else -1
    if checkpoint.get("save_optimizer", SWITCH, "save_only_model", True) is False:
        settings["save_only_model"] = True
    checkpoint.expect("save_param_scheduler", True, False)
    checkpoint.expect("save_last", True, advice="the weights at the end are in final/ in any case")
    checkpoint.expect("save_best", advice="keep_best: identity keeps the checkpoint that knows its name best")
    checkpoint.expect("rule")
    draft.note_rest(checkpoint)


def _save_by_epoch(checkpoint: Part, every: float, length: Length) -> None:
    draft, settings = checkpoint.draft, checkpoint.draft.settings
    said = f"{checkpoint.path}: saves by epoch, every {shown(every)}"
    if every == 1 or not length.epochs or every >= length.epochs:
        settings["save_strategy"] = "epoch"
    else:
        # A number of steps below 1 is a share of them all.
        settings |= {"save_strategy": "steps", "save_steps": round(every / length.epochs, 6)}
        draft.note(f"{said}: save_steps is the share of all steps that {shown(every)} epochs make")
    if not length.has_epochs:
        draft.note(f"{said}; XTuner's TrainLoop counts the whole training as one epoch and saves at its end alone")
    elif every != 1 and settings.get("save_strategy") == "epoch":
        draft.note(f"{said}; here after each")


def _usual(value: object, name: str) -> tuple[object, ...]:
    return (value,) if name_of(value) == name else ()


def _read_custom_hooks(config: Part) -> None:
    draft = config.draft
    draft.at_top |= dict.fromkeys(("evaluation_inputs", "evaluation_freq", "SYSTEM"), ("EvaluateChatHook", None))
    asks = False
    for hook in config.parts("custom_hooks"):
        kind = name_of(hook.values.get("type"))
        if kind == "EvaluateChatHook":
            if asks:
                _read_second_evaluation(hook)
            else:
                _read_evaluation(hook)
            asks = True
        elif kind not in DONE_ANYWAY:
            draft.note(f"{hook.path} = {shown(hook.values)}: no counterpart here")
    if not asks:
        draft.note("custom_hooks: no EvaluateChatHook, so nothing is asked during training; eval_prompts would ask")


def _read_second_evaluation(hook: Part) -> None:
    """Its prompts join the first's, and are asked as those are."""
    hook.draft.note(f"{hook.path}: a second EvaluateChatHook; its prompts are asked when and as the first's are")
    for name in ("type", "tokenizer", "prompt_template"):
        hook.take(name)
    _add_prompts(hook)
    hook.draft.note_rest(hook)


def _add_prompts(hook: Part) -> list[str]:
    """Add a hook's prompts to those that are asked; returns its own."""
    draft, settings = hook.draft, hook.draft.settings
    given = hook.take("evaluation_inputs")
    prompts = given if isinstance(given, list) else [given]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    for prompt in prompts:
        if not isinstance(prompt, str):
            draft.note(hook.not_known("evaluation_inputs", prompt, "set eval_prompts yourself"))
    if texts:
        settings["eval_prompts"] = [*settings.get("eval_prompts", []), *texts]
    return texts


def _read_evaluation(hook: Part) -> None:
    draft, settings = hook.draft, hook.draft.settings
    hook.take("type")
    hook.take("tokenizer")
    draft.at_top["evaluation_inputs"] = (hook.path_of("evaluation_inputs"), hook.values.get("evaluation_inputs"))
    if texts := _add_prompts(hook):
        every = hook.get("every_n_iters", WHOLE, "eval_prompts_steps", at_top="evaluation_freq")
        settings["eval_prompts_steps"] = draft.steps_of(hook, "every_n_iters", max(every or 0, 0), "eval_prompts_steps")
        _read_generation(hook)
    system = hook.get("system", TEXT, "eval_prompts_system", at_top="SYSTEM")
    if system and texts:
        settings["eval_prompts_system"] = system
    note_template(hook, "prompt_template")
    for name in ("stop_word", "stop_words"):
        hook.expect(name, [], "", advice="an answer ends where the chat template ends a turn")
    hook.expect("evaluation_images", advice="only text is asked here")
    hook.expect("image_processor")
    draft.note_rest(hook)


def _read_generation(hook: Part) -> None:
    """How answers are generated. Source of the default: EvaluateChatHook."""
    fields: dict[str, Any] = {"max_new_tokens": hook.get("max_new_tokens", WHOLE, "eval_prompts_generation", 600)}
    given = hook.part("generation_kwargs")
    if not given or not given.values:
        hook.draft.note(f"{hook.path}: XTuner samples answers, at temperature 0.1; here they are greedy")
    else:
        fields |= SAMPLING
        for name in given.values:
            value = given.take(name)
            if isinstance(value, Unknown) or as_symbol(value):
                hook.draft.note(given.not_known(name, value, "set eval_prompts_generation yourself"))
            else:
                fields[name] = value
    fields = {name: value for name, value in fields.items() if value is not None}
    if fields:
        hook.draft.settings["eval_prompts_generation"] = fields


def _read_visualizer(config: Part) -> None:
    draft, visualizer = config.draft, config.part("visualizer")
    draft.settings["report_to"] = "tensorboard"
    if visualizer is None:
        return
    visualizer.take("type")
    visualizer.take("name")
    found = []
    for backend in visualizer.parts("vis_backends"):
        kind = backend.take("type")
        if name := BACKENDS.get(name_of(kind) or ""):
            found.append(name)
        elif name_of(kind) != "LocalVisBackend":
            draft.note(f"{backend.shown('type', kind)}: set report_to yourself")
        arguments = backend.part("init_kwargs")
        if arguments and "wandb" in found:
            arguments.carry("name", TEXT, "run_name")
            if project := arguments.take("project"):
                said = arguments.shown("project", project)
                draft.note(f"{said}: set the environment variable WANDB_PROJECT")
        if arguments:
            draft.note_rest(arguments)
        draft.note_rest(backend)
    if found:
        draft.settings["report_to"] = found[0] if len(found) == 1 else found
    draft.note_rest(visualizer)


def _read_environment(config: Part) -> None:
    draft, environment = config.draft, config.part("env_cfg")
    if environment is None:
        return
    environment.expect("cudnn_benchmark", False)
    environment.expect("resource_limit", 4096)
    if processes := environment.part("mp_cfg"):
        processes.expect("mp_start_method", "fork", advice="dataloader_multiprocessing_context says it here")
        processes.expect("opencv_num_threads", 0)
        draft.note_rest(processes)
    if distributed := environment.part("dist_cfg"):
        backend = distributed.get("backend", TEXT, "ddp_backend", "nccl")
        if backend and backend != "nccl":
            draft.settings["ddp_backend"] = backend
        draft.note_rest(distributed)
    draft.note_rest(environment)
