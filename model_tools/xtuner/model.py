"""What XTuner's `model` and `tokenizer` come to in a recipe: base model, precision, quantisation and adapter."""

from typing import Any

from model_tools.xtuner.draft import NUMBER, SWITCH, TEXT, WHOLE, Part
from model_tools.xtuner.values import as_symbol, name_of, shown

DTYPES = {"float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}


def read_model(config: Part, precision: str | None) -> None:
    """Set the keys on the model; `precision` is that of the optimizer wrapper, None where it mixes none."""
    draft, model = config.draft, config.part("model")
    if model is None:
        return
    model.expect("type", *_names("SupervisedFinetune", model.values.get("type")), "SupervisedFinetune")
    is_adapted = _read_lora(model)
    llm = model.part("llm")
    if llm:
        _read_llm(llm, precision, is_adapted)
    draft.settings["activation_checkpointing"] = model.get(
        "use_activation_checkpointing", SWITCH, "activation_checkpointing", True
    )
    varlen = model.take("use_varlen_attn")
    if varlen:
        draft.note(f"{model.shown('use_varlen_attn', varlen)}: packed samples never see each other here")
    model.expect("pretrained_pth", advice="its weights are not loaded; give model_name_or_path the merged model")
    model.expect("peft_model", advice="its adapter is not loaded; merge it into the base model first")
    for name in ("tokenizer", "data_preprocessor"):
        if isinstance(model.values.get(name), dict):
            _read_tokenizer(model, name)
    _read_tokenizer(config, "tokenizer")
    draft.note_rest(model)


def _read_llm(llm: Part, precision: str | None, is_adapted: bool) -> None:
    draft = llm.draft
    llm.expect("type", *_names("AutoModelForCausalLM.from_pretrained", llm.values.get("type")))
    llm.carry("pretrained_model_name_or_path", TEXT, "model_name_or_path", at_top="pretrained_model_name_or_path")
    if llm.values.get("pretrained_model_name_or_path") is None:
        draft.note(f"{llm.path}: names no pretrained_model_name_or_path; set model_name_or_path yourself")
    llm.carry("revision", TEXT, "model_revision")
    if llm.take("trust_remote_code"):
        draft.note(f"{llm.shown('trust_remote_code', True)}: no code from the hub is run here unless a recipe says so")
    for name in ("device_map", "low_cpu_mem_usage", "use_cache", "cache_dir", "local_files_only"):
        llm.expect(name, False, "auto" if name == "device_map" else True, advice="decided here, or by HF_HOME")
    attention = llm.get("attn_implementation", TEXT, "attn_implementation")
    if llm.take("use_flash_attention_2"):
        attention = "flash_attention_2"
    draft.settings["attn_implementation"] = attention or "sdpa"
    held = _dtype(llm, "torch_dtype") or _dtype(llm, "dtype")
    quantised = _quantisation(llm)
    if quantised:
        computed = _read_quantisation(quantised, is_adapted)
        if computed and held and computed != held:
            draft.note(
                f"{llm.path_of('torch_dtype')} = {held}, and {quantised.path_of('bnb_4bit_compute_dtype')} = "
                f"{computed}: one key says both here, dtype"
            )
        held = computed or held
    dtype = held or "float32"
    if precision and dtype in ("float16", "bfloat16") and dtype != precision:
        draft.note(
            f"{llm.path_of('torch_dtype')} = {dtype}, and optim_wrapper computes in {precision}: weights are held in "
            f"the same here, dtype: {precision}"
        )
        dtype = precision
    draft.settings["dtype"] = dtype
    draft.note_rest(llm)


def _quantisation(llm: Part) -> Part | None:
    """The part on quantisation; `from_pretrained` takes load_in_4bit and load_in_8bit in its place too."""
    quantised = llm.part("quantization_config")
    direct: dict[str, Any] = {name: llm.take(name) for name in ("load_in_4bit", "load_in_8bit") if name in llm.values}
    return quantised or (Part(direct, llm.path, llm.draft) if any(direct.values()) else None)


def _names(full_name: str, value: object) -> tuple[object, ...]:
    """The value itself where it is a symbol of this name, with whatever module before it."""
    symbol = as_symbol(value)
    return (value,) if symbol and f".{symbol.text}".endswith(f".{full_name}") else ()


def _dtype(part: Part, name: str) -> str | None:
    value = part.take(name)
    if value is None:
        return None
    if value == "auto":
        return "auto"
    dtype = DTYPES.get(name_of(value) or "")
    if dtype is None:
        part.draft.note(part.not_known(name, value, "set dtype yourself"))
    return dtype


def _read_quantisation(quantised: Part, is_adapted: bool) -> str | None:
    """Set the keys on quantisation; returns the type that its weights are computed with."""
    draft = quantised.draft
    keys: dict[str, Any] = {}
    quantised.take("type")
    quantised.expect("quant_method", "bitsandbytes")
    quantised.expect("_load_in_4bit")
    quantised.expect("_load_in_8bit")
    for name in ("load_in_4bit", "load_in_8bit"):
        if quantised.get(name, SWITCH, name):
            keys[name] = True
    computed = _dtype(quantised, "bnb_4bit_compute_dtype")
    kind = quantised.get("bnb_4bit_quant_type", TEXT, "bnb_4bit_quant_type", "fp4")
    nested = quantised.get("bnb_4bit_use_double_quant", SWITCH, "use_bnb_nested_quant", False)
    storage = quantised.take("bnb_4bit_quant_storage")
    if "load_in_4bit" in keys:
        keys |= {"bnb_4bit_quant_type": kind, "use_bnb_nested_quant": nested}
        if storage is not None:
            keys["bnb_4bit_quant_storage"] = name_of(storage)
        # Source: bitsandbytes' default.
        computed = computed or "float32"
    else:
        computed = None
    quantised.expect("llm_int8_threshold", 6, 6.0)
    quantised.expect("llm_int8_has_fp16_weight", False)
    quantised.expect("llm_int8_enable_fp32_cpu_offload", False)
    quantised.expect("llm_int8_skip_modules")
    draft.note_rest(quantised)
    if keys and not is_adapted:
        draft.note(
            f"{quantised.path} = {shown(quantised.values, None)}: weights that are quantised cannot be trained "
            "themselves, and the model has no lora: left out; for QLoRA, set use_peft: true and load_in_4bit: true"
        )
        return None
    draft.settings |= keys
    return computed


def _read_lora(model: Part) -> bool:
    """Set the keys on the adapter; returns whether there is one."""
    draft, lora = model.draft, model.part("lora")
    if lora is None:
        return False
    lora.expect("type", *_names("LoraConfig", lora.values.get("type")), "LoraConfig")
    draft.settings["use_peft"] = True
    # Defaults: those of PEFT's LoraConfig.
    lora.carry("r", WHOLE, "lora_r", 8, at_top="lora_r")
    lora.carry("lora_alpha", NUMBER, "lora_alpha", 8, at_top="lora_alpha")
    alpha = draft.settings.get("lora_alpha")
    if isinstance(alpha, float) and alpha.is_integer():
        draft.settings["lora_alpha"] = int(alpha)
    lora.carry("lora_dropout", NUMBER, "lora_dropout", 0.0, at_top="lora_dropout")
    # XTuner finds all linear layers but the head where a config names none.
    draft.settings["lora_target_modules"] = _modules(lora, "target_modules", "lora_target_modules") or "all-linear"
    for name, key in (("modules_to_save", "lora_modules_to_save"), ("target_parameters", "lora_target_parameters")):
        if modules := _modules(lora, name, key):
            draft.settings[key] = modules
    for name in ("use_rslora", "use_dora"):
        if lora.get(name, SWITCH, name):
            draft.settings[name] = True
    lora.expect("bias", "none", advice="no bias is trained here")
    lora.expect("task_type", "CAUSAL_LM", *_names("TaskType.CAUSAL_LM", lora.values.get("task_type")))
    lora.expect("inference_mode", False)
    lora.expect("fan_in_fan_out", False)
    lora.expect("init_lora_weights", True, advice="adapters begin as PEFT's default has it, without effect")
    draft.note_rest(lora)
    return True


def _modules(lora: Part, name: str, key: str) -> Any:
    """A list of modules, or one text that stands for some."""
    value = lora.take(name)
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        value = next(item for item in value if not isinstance(item, str))
    elif value is None or isinstance(value, (str, list)):
        return value
    lora.draft.note(lora.not_known(name, value, f"set {key} yourself"))
    return None


def _read_tokenizer(owner: Part, name: str) -> None:
    """The tokenizer is the model's; a note on one from elsewhere."""
    draft, tokenizer = owner.draft, owner.part(name)
    if tokenizer is None:
        return
    tokenizer.take("type")
    model = draft.settings.get("model_name_or_path")
    tokenizer.expect(
        "pretrained_model_name_or_path", model, advice="the tokenizer is the one in model_name_or_path here"
    )
    tokenizer.expect("trust_remote_code", True, False)
    tokenizer.expect("padding_side", "right", "left")
    tokenizer.expect("encode_special_tokens", True, False)
    tokenizer.expect("use_fast", True, False)
    draft.note_rest(tokenizer)
