"""What people change in an XTuner config, at every level."""

from tests.support.xtuner_configs import DUMP, QLORA

_LOADED = "dataset=dict(type=load_dataset, path='json', data_files=dict(train=alpaca_en_path))"
_CLIP = "    clip_grad=dict(max_norm=max_norm, error_if_nonfinite=False),\n"
_SCHEDULE = QLORA[QLORA.index("param_scheduler = [") : QLORA.index("train_cfg = ")]
_QUANTISED = QLORA[QLORA.index("        quantization_config=dict(") : QLORA.index("    lora=dict(")]
_LORA = QLORA[QLORA.index("    lora=dict(") : QLORA.index("# part 3")]
_ASKING = QLORA[QLORA.index("    dict(\n        type=EvaluateChatHook") : QLORA.index("if use_varlen_attn:")]
_CHECKPOINT = QLORA[QLORA.index("    checkpoint=dict(") : QLORA.index("    sampler_seed")]
_COSINE_ENDS = "        end=max_epochs,\n        convert"
_CMD = "import torch\nfrom xtuner.dataset.map_fns import cmd_map_fn\n"
_WRAPPER = DUMP[DUMP.index("optim_wrapper = dict(") : DUMP.index("param_scheduler = [")]
# As `xtuner train --deepspeed` leaves it in work_dirs: what the wrapper said is said to DeepSpeed.
_UNDER_DEEPSPEED = """
optim_wrapper = dict(
    optimizer=dict(betas=(0.9, 0.999), lr=0.0002, type='torch.optim.AdamW', weight_decay=0),
    type='DeepSpeedOptimWrapper')
runner_type = 'FlexibleRunner'
strategy = dict(
    config=dict(
        bf16=dict(enabled=True),
        fp16=dict(enabled=False, initial_scale_power=16),
        gradient_accumulation_steps='auto',
        gradient_clipping='auto',
        train_micro_batch_size_per_gpu='auto',
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
        zero_optimization=dict(overlap_comm=True, stage=2)),
    exclude_frozen_parameters=True,
    gradient_accumulation_steps=16,
    gradient_clipping=1,
    sequence_parallel_size=1,
    train_micro_batch_size_per_gpu=1,
    type='xtuner.engine.DeepSpeedStrategy')
"""

Edit = tuple[str, str]


def edited(base: str, *edits: Edit) -> str:
    """The base with each text replaced; what replaces the empty text goes to the end."""
    for old, new in edits:
        assert old in base, old
        base = base.replace(old, new) if old else base + new
    return base


def _qlora(*edits: Edit) -> str:
    return edited(QLORA, *edits)


# What people change, by a name for each.
CONFIGS: dict[str, str] = {
    "as it is": QLORA,
    "names at the top": _qlora(
        ("lr = 2e-4", "lr = 1e-4"),
        ("max_epochs = 3", "max_epochs = 10"),
        ("batch_size = 1", "batch_size = 4"),
        ("max_length = 2048", "max_length = 512"),
        ("save_steps = 500", "save_steps = 100"),
        ("evaluation_freq = 500", "evaluation_freq = 50"),
        ("SYSTEM = ''", "SYSTEM = '你是黄大力。'"),
    ),
    "lr in the optimizer": _qlora(("type=optim_type, lr=lr,", "type=optim_type, lr=5e-5,")),
    "all of the optimizer": _qlora(
        (
            "type=optim_type, lr=lr, betas=betas, weight_decay=weight_decay",
            "type=optim_type, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, eps=1e-6",
        ),
    ),
    "the optimizer's own defaults": _qlora(
        ("type=optim_type, lr=lr, betas=betas, weight_decay=weight_decay", "type=AdamW")
    ),
    "another optimizer": _qlora(
        ("from torch.optim import AdamW", "from bitsandbytes.optim import PagedAdamW32bit"),
        ("= AdamW", "= PagedAdamW32bit"),
    ),
    "an optimizer without counterpart": _qlora(
        ("from torch.optim import AdamW", "from torch.optim import ASGD"), ("= AdamW", "= ASGD")
    ),
    "epochs in the loop": _qlora(("max_epochs=max_epochs)\n\n# part 5", "max_epochs=5)\n\n# part 5")),
    "iterations": _qlora(("max_epochs=max_epochs)\n\n# part 5", "max_iters=400)\n\n# part 5")),
    "iterations that accumulate": _qlora(
        ("max_epochs=max_epochs)\n\n# part 5", "max_iters=400)\n\n# part 5"),
        ("accumulative_counts = 1", "accumulative_counts = 4"),
    ),
    "the loader's numbers": _qlora(
        ("batch_size=batch_size", "batch_size=8"),
        ("num_workers=dataloader_num_workers", "num_workers=4"),
    ),
    "the loader's defaults": _qlora(("    batch_size=batch_size,\n    num_workers=dataloader_num_workers,\n", "")),
    "accumulation in the wrapper": _qlora(("accumulative_counts=accumulative_counts", "accumulative_counts=16")),
    "no accumulation": _qlora(("    accumulative_counts=accumulative_counts,\n", "")),
    "another clip": _qlora(("max_norm=max_norm", "max_norm=0.5")),
    "no clip": _qlora((_CLIP, "")),
    "length and packing in the data set": _qlora(
        ("max_length=max_length,", "max_length=4096,"),
        ("pack_to_max_length=pack_to_max_length", "pack_to_max_length=False"),
        ("shuffle_before_pack=True", "shuffle_before_pack=False"),
    ),
    "no packing named": _qlora(("    pack_to_max_length=pack_to_max_length,\n", "")),
    "prompts in the hook": _qlora(
        ("evaluation_inputs=evaluation_inputs", "evaluation_inputs=['你叫什么？', '你是谁？', 'Hi']")
    ),
    "one prompt": _qlora(("evaluation_inputs=evaluation_inputs", "evaluation_inputs='你叫什么？'")),
    "the hook's other values": _qlora(
        ("every_n_iters=evaluation_freq", "every_n_iters=30, max_new_tokens=200"),
        ("system=SYSTEM", "system='你是助手'"),
    ),
    "no asking": _qlora((_ASKING, "]\n\n")),
    "asking without a number": _qlora(("        every_n_iters=evaluation_freq,\n", "")),
    "save and log intervals": _qlora(
        ("interval=save_steps", "interval=200"),
        ("max_keep_ckpts=save_total_limit", "max_keep_ckpts=-1"),
        ("log_metric_by_epoch=False, interval=10", "log_metric_by_epoch=False, interval=1"),
    ),
    "saving by epoch": _qlora(("by_epoch=False,\n        interval=save_steps", "by_epoch=True,\n        interval=1")),
    "saving every second epoch of a loop by epoch": _qlora(
        ("by_epoch=False,\n        interval=save_steps", "interval=2"),
        ("max_epochs = 3", "max_epochs = 8"),
        ("dict(type=TrainLoop, max", "dict(by_epoch=True, max"),
    ),
    "no checkpoint hook": _qlora((_CHECKPOINT, "")),
    "checkpoints off": _qlora((_CHECKPOINT, "    checkpoint=None,\n")),
    "all of the adapter": _qlora(
        ("r=64", "r=8"),
        ("lora_alpha=16", "lora_alpha=32"),
        ("lora_dropout=0.1", "lora_dropout=0.05"),
        (
            "bias='none'",
            "bias='lora_only', use_rslora=True, modules_to_save=['embed_tokens', 'lm_head'], "
            "target_modules=['q_proj', 'v_proj'], use_dora=True, init_lora_weights='gaussian'",
        ),
    ),
    "the adapter's own defaults": _qlora(("        r=64,\n        lora_alpha=16,\n        lora_dropout=0.1,\n", "")),
    "LoRA in bf16": _qlora(
        (_QUANTISED, "        ),\n"),
        ("dtype='float16'", "dtype='bfloat16'"),
        ("torch_dtype=torch.float16", "torch_dtype=torch.bfloat16"),
    ),
    "full": _qlora(
        (_QUANTISED, "        ),\n"),
        (_LORA, "    )\n"),
        ("torch_dtype=torch.float16", "torch_dtype=torch.bfloat16"),
        ("dtype='float16'", "dtype='bfloat16'"),
    ),
    "8 bits": _qlora(("load_in_4bit=True", "load_in_4bit=False"), ("load_in_8bit=False", "load_in_8bit=True")),
    "fp4 without double quantisation": _qlora(
        ("bnb_4bit_use_double_quant=True", "bnb_4bit_use_double_quant=False"), ("'nf4'", "'fp4'")
    ),
    "no mixed precision": _qlora(
        ("AmpOptimWrapper,\n", "OptimWrapper,\n"), ("import AmpOptimWrapper", "import OptimWrapper, AmpOptimWrapper")
    ),
    "no activation checkpointing": _qlora(
        ("    type=SupervisedFinetune,\n", "    type=SupervisedFinetune,\n    use_activation_checkpointing=False,\n")
    ),
    "two data sets": _qlora(
        (
            "from xtuner.dataset import process_hf_dataset",
            "from xtuner.dataset import ConcatDataset, process_hf_dataset",
        ),
        (
            "sampler = Seq",
            "second = dict(type=process_hf_dataset, max_length=max_length, dataset=dict(type=load_dataset, "
            "path='json', data_files='data/second.jsonl'))\n"
            "both = dict(type=ConcatDataset, datasets=[alpaca_en, second])\nsampler = Seq",
        ),
        ("dataset=alpaca_en,", "dataset=both,"),
    ),
    "several files": _qlora(
        ("data_files=dict(train=alpaca_en_path)", "data_files=[f'data/{name}.jsonl' for name in ('a', 'b')]")
    ),
    "a data set of the hub": _qlora((_LOADED, "dataset=dict(type=load_dataset, path='tatsu-lab/alpaca')")),
    "a folder of data": _qlora(
        ("data_files=dict(train=alpaca_en_path)", "data_dir='data/mine', data_files='rows.jsonl'")
    ),
    "a function of one's own": _qlora(
        ("dataset_map_fn=None", "dataset_map_fn=my_map_fn"),
        ("# part 3", "def my_map_fn(example):\n    return example\n\n# part 3"),
    ),
    "samples in order": _qlora(("shuffle=True)", "shuffle=False, seed=3)")),
    "a minimum of the cosine": _qlora(("eta_min=0.0", "eta_min=lr * 0.1")),
    "no warm-up": _qlora(
        (
            _SCHEDULE,
            "param_scheduler = [dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, T_max=max_epochs, "
            "convert_to_iter_based=True)]\n\n",
        )
    ),
    "no schedule": _qlora((_SCHEDULE, "")),
    "a warm-up in iterations": _qlora(
        (
            "by_epoch=True,\n        begin=0,\n        end=warmup_ratio * max_epochs,\n"
            "        convert_to_iter_based=True",
            "by_epoch=False,\n        begin=0,\n        end=100",
        )
    ),
    "a linear fall": _qlora(
        (
            "type=CosineAnnealingLR,\n        eta_min=0.0",
            "type=LinearLR,\n        start_factor=1.0,\n        end_factor=0.0",
        )
    ),
    "changes at the end": _qlora(
        (
            "",
            "\noptim_wrapper['optimizer']['lr'] = 1e-4\nmodel.lora.r = 8\nmodel['lora'].update(lora_alpha=32)\n"
            "train_dataloader.update(dict(batch_size=2))\ntrain_cfg.max_epochs = 1\n"
            "evaluation_inputs.append('还有什么？')\n"
            "del default_hooks['checkpoint']['max_keep_ckpts']\noptim_wrapper['accumulative_counts'] += 1\n",
        ),
    ),
    "reckoned": _qlora(
        ("max_length = 2048", "max_length = int(32768 / 4)"),
        ("save_steps = 500", "save_steps = 10 ** 2 if max_epochs > 2 else 5"),
        ("lr = 2e-4", "base_lr, scale = 1e-4, 2\nlr = base_lr * scale"),
        ("'data/huangdali.jsonl'", "os.path.join(data_root, 'x' + '.jsonl')"),
        ("# part 1: settings", "import os\ndata_root = '{}/{}'.format('data', 'huang')"),
        (
            "evaluation_inputs = ['请介绍一下你自己',",
            "evaluation_inputs = ['请介绍' '一下', f'{max_length} tokens', 'a'.replace('a', 'b'),",
        ),
    ),
    "conditions and loops": _qlora(
        (
            "# part 2",
            "debug = True and not use_varlen_attn\nif debug:\n    lr = 3e-4\nelse:\n    lr = 1\n"
            "for question in ('甲', '乙'):\n    evaluation_inputs.append(question)\n"
            "evaluation_inputs += [q.upper() for q in ['x', 'y'] if q != 'x']\n# part 2",
        ),
    ),
    "the runtime": _qlora(
        ("seed=None, deterministic=False", "seed=7, deterministic=True"),
        ("log_level = 'INFO'", "log_level = 'WARNING'\nwork_dir = './work_dirs/mine'"),
        ("resume = False", "resume = True"),
        ("load_from = None", "load_from = './iter_500.pth'"),
        (
            "visualizer = None",
            "from mmengine.visualization import Visualizer, WandbVisBackend, TensorboardVisBackend\n"
            "visualizer = dict(type=Visualizer, vis_backends=[dict(type=TensorboardVisBackend), "
            "dict(type=WandbVisBackend)])",
        ),
    ),
    "a varlen run": _qlora(("use_varlen_attn = False", "use_varlen_attn = True")),
    "sequence parallel": _qlora(("sequence_parallel_size = 1", "sequence_parallel_size = 4")),
    "a validation": _qlora(
        ("", "\nval_dataloader = dict(batch_size=1)\nval_cfg = dict(type='ValLoop')\n"),
        ("max_epochs=max_epochs)\n\n# part 5", "max_epochs=max_epochs, val_interval=100)\n\n# part 5"),
    ),
    "a cosine that lasts longer than training": _qlora((_COSINE_ENDS, _COSINE_ENDS.replace("end=", "T_max="))),
    "a cosine that comes up again": _qlora((_COSINE_ENDS, _COSINE_ENDS.replace("end=", "T_max=1, end="))),
    "a cosine without end": _qlora((_COSINE_ENDS, "        convert")),
    "one scheduler, in no list": _qlora(
        (
            _SCHEDULE,
            "param_scheduler = dict(type=CosineAnnealingLR, T_max=max_epochs, by_epoch=True, "
            "convert_to_iter_based=True)\n\n",
        )
    ),
    "batches made by a sampler": _qlora(
        (
            "    collate_fn=dict(",
            "    batch_sampler=dict(type=BatchSampler, drop_last=True, batch_size=4),\n    collate_fn=dict(",
        ),
        ("import torch\n", "import torch\nfrom torch.utils.data import BatchSampler\n"),
    ),
    "how answers are generated": _qlora(
        ("every_n_iters=evaluation_freq", "every_n_iters=evaluation_freq, generation_kwargs=dict(temperature=0.7)")
    ),
    "8 bits, said to the model itself": _qlora((_QUANTISED, "        load_in_8bit=True),\n")),
    "data sets by name": _qlora(
        (
            "sampler = Seq",
            "both = dict(type='ConcatDataset', datasets_cfg=dict(first=alpaca_en, second=dict(alpaca_en, "
            "dataset=dict(type=load_dataset, path='json', data_files='data/second.jsonl'))))\nsampler = Seq",
        ),
        ("dataset=alpaca_en,", "dataset=both,"),
    ),
    "the function's first name": _qlora(("dataset_map_fn=None", "map_fn=cmd_map_fn"), ("import torch\n", _CMD)),
    "a folder named after the config": _qlora(
        ("# part 2", "from pathlib import Path\nwork_dir = str(Path('runs') / Path(__file__).stem)\n# part 2")
    ),
    "what runs as a program": _qlora(("", "\nif __name__ == '__main__':\n    model.lora.r = 1\n")),
    "a dump": DUMP,
    "a dump of a run under DeepSpeed": edited(DUMP, (_WRAPPER, _UNDER_DEEPSPEED)),
    "an edited dump": edited(DUMP, ("r=64", "r=16"), ("lr=0.0002", "lr=0.0001"), ("interval=400", "interval=160")),
}
