"""The programs that benchmarks.train compares: how each is installed, given the same job, and started.

In: a job. Out: a command, and the file whose lines say that a step is done: of this repository its `log.jsonl`, of
others what they print. LLaMA-Factory and XTuner pin other versions of the stack and live in virtual environments of
their own, which are made when they are first needed.
"""

import json
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import CONFIG_NAME

from benchmarks.tasks import Task
from sft.config.own_keys import OwnKeys
from sft.core.paths import REPOSITORY
from sft.runs.run_files import LOG, read_plan, read_result

# SmolLM2's chat template with the marks that TRL's loss on answers alone needs.
MARKED_TEMPLATE = REPOSITORY / "benchmarks/templates/smollm2_marked.jinja"
# A line of Transformers' Trainer.
TRAINERS_STEP = r"'loss': '?(?P<loss>[\d.]+)'?, .*'epoch': '?(?P<epoch>[\d.]+)'?"


@dataclass(frozen=True)
class Job(Task):
    """A task for one run of a program: how many steps to take, and the folder its files go to."""

    steps: int
    folder: Path

    def write(self, name: str, text: str) -> str:
        """Write one of the files a program reads; returns its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def write_rows(self, name: str) -> str:
        """Write the conversations as a file of `messages`; returns its path."""
        rows = (json.dumps({"messages": turns}, ensure_ascii=False) for turns in self.conversations)
        return self.write(name, "".join(f"{row}\n" for row in rows))

    @property
    def console(self) -> Path:
        """The file that what the program prints goes to."""
        return self.folder / "console.log"

    @property
    def output(self) -> Path:
        """The folder that the program trains into."""
        return self.folder / "run"

    @property
    def run(self) -> dict[str, Any]:
        """The settings of Transformers' Trainer in every program that uses it."""
        return {"max_steps": self.steps, "logging_steps": 1, "save_strategy": "no", "report_to": "none"} | {
            "output_dir": str(self.output)
        }

    @property
    def peers_run(self) -> dict[str, Any]:
        """As `run`, for programs that use a GPU unless a setting forbids it."""
        return self.run | {"use_cpu": self.device == "cpu"}


class Program:
    """One way to train. `step` is the pattern of the printed line that ends a step."""

    step = TRAINERS_STEP
    packages: tuple[str, ...] = ()

    def __init__(self, label: str, **variables: str):
        """`variables` are set in the program's process environment."""
        self.label, self.variables = label, variables

    @property
    def environment(self) -> Path:
        """The folder of its virtual environment."""
        return REPOSITORY / "work_dirs/peers" / type(self).__name__.lower()

    def install(self) -> None:
        """Make the program's own environment, unless it is there.

        Raises:
            CalledProcessError: its packages cannot be installed.
        """
        if not self.packages or (self.environment / "ready").exists():
            return
        print(f"{self.label}: installing {' '.join(self.packages)} (several gigabytes)", flush=True)
        venv.create(self.environment, with_pip=True, clear=True)
        subprocess.run([self.environment / "bin/python", "-m", "pip", "install", "--quiet", *self.packages], check=True)
        (self.environment / "ready").touch()

    def command(self, job: Job) -> list[str]:
        """The command a person would type, after its files are written."""
        raise NotImplementedError

    def log(self, job: Job) -> Path:
        """The file that gets a line at the end of each step."""
        return job.console

    def loss_of(self, line: str) -> float | None:
        """The loss in a line of the log; None where the line does not end a step."""
        step = re.search(self.step, line)
        return float(step["loss"]) if step else None

    def steps_per_epoch(self, job: Job) -> float:
        """How many steps see every row once; the Trainer prints the share of an epoch behind it."""
        return job.steps / float(re.findall(self.step, job.console.read_text(encoding="utf-8"))[-1][1])

    def error(self, job: Job) -> str:
        """What went wrong, in one line."""
        lines = job.console.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if "Error" in line), "ended before its steps were done")


class Here(Program):
    """This repository, on the recipe less what it asks the model on the way."""

    def __init__(self, label: str, **changed):
        """`changed` are keys of the recipe and, in capitals, variables of the environment."""
        super().__init__(label, **{name: value for name, value in changed.items() if name.isupper()})
        self.keys = {name: value for name, value in changed.items() if not name.isupper()}

    def command(self, job: Job) -> list[str]:
        evaluating = ("eval_", "identity_", "score_")
        settings = {key: value for key, value in job.recipe.items() if not key.startswith(evaluating)}
        settings |= job.run | self.keys
        settings |= {"train_file": job.write_rows("here.jsonl"), "resume": "never"}
        return [sys.executable, str(REPOSITORY / "train_sft.py"), job.write("here.yaml", yaml.safe_dump(settings))]

    def log(self, job: Job) -> Path:
        return job.output / LOG

    def loss_of(self, line: str) -> float | None:
        loss = json.loads(line).get("loss")
        return None if loss is None else float(loss)

    def steps_per_epoch(self, job: Job) -> float:
        return read_plan(job.output)["steps_per_epoch"]

    def error(self, job: Job) -> str:
        result = read_result(job.output)
        return (result and result.message) or super().error(job)


class Trl(Program):
    """`trl sft`, either with every key of the recipe or with those alone that a person has to think of.

    It starts by accelerate, which gives a process one thread unless OMP_NUM_THREADS says otherwise.
    """

    LEFT_TO_TRL = ("dtype", "bf16", "fp16", "activation_checkpointing", "optim", "attn_implementation")
    OURS = {field.name for field in fields(OwnKeys)} | {"deepspeed"}

    def __init__(self, label: str, *, every_key: bool, **variables: str):
        super().__init__(label, **variables)
        self.every_key = every_key

    def command(self, job: Job) -> list[str]:
        left = self.OURS if self.every_key else self.OURS.union(self.LEFT_TO_TRL)
        settings = {key: value for key, value in job.recipe.items() if key not in left}
        settings |= job.peers_run | {"assistant_only_loss": True}
        settings["dataset_name"] = str(Path(job.write_rows("trl/train.jsonl")).parent)
        settings["chat_template_path"] = str(MARKED_TEMPLATE)
        config = job.write("trl.yaml", yaml.safe_dump(settings))
        # Not the program `trl`, which may lie anywhere.
        start = "import sys; from trl.cli import main; sys.argv[0] = 'trl'; main()"
        return [sys.executable, "-c", start, "sft", "--config", config]


class LlamaFactory(Program):
    """LLaMA-Factory, with the recipe's settings under its own names."""

    packages = ("llamafactory==0.9.5", "bitsandbytes==0.50.2")

    def command(self, job: Job) -> list[str]:
        recipe = job.recipe
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        info = {"file_name": "train.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}}
        job.write_rows("llamafactory/train.jsonl")
        index = job.write(
            "llamafactory/dataset_info.json", json.dumps({"train": info | {"tags": tags | {"system_tag": "system"}}})
        )
        same = ("model_name_or_path", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate")
        same += ("lora_alpha", "lora_dropout", "packing", "optim", "lr_scheduler_type", "warmup_steps", "seed")
        same += ("bf16", "fp16")
        settings = {key: recipe[key] for key in same if key in recipe} | job.peers_run
        settings |= {"stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all"}
        settings |= {"lora_rank": recipe["lora_r"], "cutoff_len": recipe["max_length"], "template": "chatml"}
        settings |= {"dataset": "train", "dataset_dir": str(Path(index).parent), "neat_packing": True}
        settings |= {"flash_attn": "sdpa", "disable_gradient_checkpointing": not recipe["activation_checkpointing"]}
        if recipe["load_in_4bit"]:
            settings |= {"quantization_bit": 4, "quantization_method": "bnb"}
        if not recipe.get("bf16") and not recipe.get("fp16"):
            settings["model_name_or_path"] = self._model_in_float32(job)
        config = job.write("llamafactory.yaml", yaml.safe_dump(settings))
        return [str(self.environment / "bin/llamafactory-cli"), "train", config]

    @staticmethod
    def _model_in_float32(job: Job) -> str:
        """The model under a config that names float32: it computes in what that names, and no setting changes it."""
        model = Path(job.recipe["model_name_or_path"])
        config = json.loads((model / CONFIG_NAME).read_bytes()) | {"dtype": "float32", "torch_dtype": "float32"}
        written = Path(job.write(f"model/{CONFIG_NAME}", json.dumps(config))).parent
        for file in model.iterdir():
            if file.name != CONFIG_NAME:
                (written / file.name).symlink_to(file.resolve())
        return str(written)


class XTuner(Program):
    """XTuner 0.2.0; its bitsandbytes has no 4 bits and its AMP no autocast on a CPU.

    It was not written for one, nor for models that Transformers 5 has saved, and gets three aids to run at all.
    """

    packages = ("xtuner==0.2.0", "setuptools<81")
    step = r"Iter\(train\) \[ *(?P<step>\d+)/\d+\].* loss: (?P<loss>[\d.]+)"

    def install(self) -> None:
        """Make the environment, with a function that it asks torch for, without a package its bitsandbytes trips over.

        Raises:
            CalledProcessError: its packages cannot be installed.
        """
        super().install()
        python = self.environment / "bin/python"
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "triton"], check=True)
        (packages,) = self.environment.glob("lib/python*/site-packages")
        asked = "import torch.cpu\ntorch.cpu.is_bf16_supported = lambda: False\n"
        (packages / "sitecustomize.py").write_text(asked, encoding="utf-8")

    def _model(self, job: Job) -> str:
        """The job's model, its tokenizer under the name that Transformers 4 has for it."""
        source = Path(job.recipe["model_name_or_path"])
        copy = Path(shutil.copytree(source, job.folder / "model")) / "tokenizer_config.json"
        text = copy.read_text(encoding="utf-8")
        copy.write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"), encoding="utf-8")
        return str(copy.parent)

    def command(self, job: Job) -> list[str]:
        rows = (json.dumps({"conversation": _turns(turns)}, ensure_ascii=False) for turns in job.conversations)
        data = job.write("xtuner.jsonl", "".join(f"{row}\n" for row in rows))
        config = job.write(
            "xtuner.py",
            XTUNER_CONFIG.format(
                **job.recipe | {"model_name_or_path": self._model(job), "data": data, "steps": job.steps},
                quantised=XTUNER_4_BITS.format(**job.recipe) if job.recipe["load_in_4bit"] else "",
            ),
        )
        return [str(self.environment / "bin/xtuner"), "train", config, "--work-dir", str(job.output)]

    def steps_per_epoch(self, job: Job) -> float:
        samples = re.search(r"Num \w+ samples (\d+)", job.console.read_text(encoding="utf-8"))
        return float(samples[1])


def _turns(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """XTuner's form of a conversation that begins with a system message."""
    system, *rest = (message["content"] for message in messages)
    turns = [{"input": question, "output": answer} for question, answer in zip(rest[::2], rest[1::2], strict=True)]
    return [turns[0] | {"system": system}, *turns[1:]]


XTUNER_4_BITS = """quantization_config=dict(
            type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_compute_dtype=torch.{dtype}, bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        ),"""
# The parts of its own internlm2_5_chat_7b_qlora_alpaca_e3 that matter to speed, under the recipe's values.
XTUNER_CONFIG = """
import torch
from datasets import load_dataset
from mmengine.dataset import DefaultSampler
from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from xtuner.dataset import process_hf_dataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.engine.hooks import DatasetInfoHook
from xtuner.engine.runner import TrainLoop
from xtuner.model import SupervisedFinetune

template = dict(
    SYSTEM="<|im_start|>system\\n{{system}}<|im_end|>\\n",
    INSTRUCTION="<|im_start|>user\\n{{input}}<|im_end|>\\n<|im_start|>assistant\\n",
    SUFFIX="<|im_end|>", SUFFIX_AS_EOS=True, SEP="\\n", STOP_WORDS=["<|im_end|>"],
)
tokenizer = dict(
    type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path="{model_name_or_path}", padding_side="right",
)
model = dict(
    type=SupervisedFinetune, use_varlen_attn=False, use_activation_checkpointing={activation_checkpointing},
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path="{model_name_or_path}",
        torch_dtype=torch.{dtype}, attn_implementation="sdpa", {quantised}
    ),
    lora=dict(
        type=LoraConfig, r={lora_r}, lora_alpha={lora_alpha}, lora_dropout={lora_dropout}, bias="none",
        task_type="CAUSAL_LM",
    ),
)
train_dataloader = dict(
    batch_size={per_device_train_batch_size}, num_workers=0,
    dataset=dict(
        type=process_hf_dataset, dataset=dict(type=load_dataset, path="json", data_files=dict(train="{data}")),
        tokenizer=tokenizer, max_length={max_length}, dataset_map_fn=None,
        template_map_fn=dict(type=template_map_fn_factory, template=template),
        remove_unused_columns=True, shuffle_before_pack=True, pack_to_max_length={packing}, use_varlen_attn=False,
    ),
    sampler=dict(type=DefaultSampler, shuffle=True), collate_fn=dict(type=default_collate_fn, use_varlen_attn=False),
)
optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr={learning_rate}, weight_decay=0),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False), accumulative_counts={gradient_accumulation_steps},
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=0.03, convert_to_iter_based=True),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=0.03, end=1, convert_to_iter_based=True),
]
train_cfg = dict(type=TrainLoop, max_iters={steps})
custom_hooks = [dict(type=DatasetInfoHook, tokenizer=tokenizer)]
default_hooks = dict(
    timer=dict(type=IterTimerHook), logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook), checkpoint=None, sampler_seed=dict(type=DistSamplerSeedHook),
)
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="gloo"),
)
visualizer = None
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed={seed}, deterministic=False)
log_processor = dict(by_epoch=False)
"""
