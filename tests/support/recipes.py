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
