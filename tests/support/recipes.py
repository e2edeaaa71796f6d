"""Settings that many recipes of the tests share."""

SMALL_LORA = {
    "dtype": "float32",
    "bf16": False,
    "use_peft": True,
    "lora_r": 8,
    "lora_target_modules": "all-linear",
    "max_length": 256,
    "packing": True,
    "per_device_train_batch_size": 1,
    "activation_checkpointing": False,
    "learning_rate": 1e-3,
}
# Of QLoRA.
NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "bfloat16", "bf16": True}
# One full-precision run and two of QLoRA: every stage, and both kinds of masters.
STAGES = {"zero1": {}, "zero2": NF4, "zero3": NF4}
# The files of an adapter's folder, as a run leaves it in `final/` and `export-adapter` writes it.
ADAPTER_FOLDER = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "base_model.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
]
