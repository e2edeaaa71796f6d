"""What each part of a step is worth on a GPU: one process, one load of the model, one thing changed at a time.

    python -m benchmarks.ablations
    python -m benchmarks.ablations --only attention PEFT --steps 30

Trains recipes/huangdali.yaml without DeepSpeed on a model of InternLM2.5-7B's shape, prints a row as soon as it is
measured, and whether each run ended with the very weights that the first run of its kind ended with. A step is timed
from the end of one to the end of the next, the device waited for; the first four warm up.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.models.llama import modeling_llama

from benchmarks.one_load import OneLoad
from benchmarks.operations import MATRIX, matmul_rate, operations, sizes_of
from benchmarks.step_profile import StepProfile, wait_for_device
from benchmarks.tasks import tutorial_files
from sft.config.recipe import Recipe
from sft.core.console import quiet_the_stack
from sft.data.dataset_card import DatasetCard
from sft.data.questions import load_questions
from sft.evaluation.score import score
from sft.models.fused_lora import unfuse_lora
from sft.models.meta_model import MetaModel
from sft.training.cpu import use_masked_lm_head
from sft.training.memory import GIB, predict_memory
from sft.training.needed_tokens import NeededTokens, compute_needed_tokens
from sft.training.packed_attention import attend_over_packs
from sft.training.trainer import RecipeTrainer

WARM_UP = 4
FP16 = {"fp16": True, "bf16": False, "dtype": "float16"}
BF16 = {"fp16": False, "bf16": True, "dtype": "bfloat16"}


@dataclass(frozen=True)
class Ablation:
    """A run that differs from the recipe: in keys, in a change to its trainer, in a context, or in being TRL's own.

    `alike` names a kind of run: all of a kind should end with the same weights.
    """

    label: str
    keys: dict = field(default_factory=dict)
    change: Callable[[RecipeTrainer], object] = lambda trainer: None
    around: Callable[[PreTrainedModel], contextlib.AbstractContextManager] = lambda model: contextlib.nullcontext()
    alike: str = ""
    by_trl: bool = False


class Times(TrainerCallback):
    """Notes when each step ended, and its loss."""

    def __init__(self):
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args, state, control, **_):
        """Record the time, once the device is done."""
        wait_for_device()
        self.ends.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **_):
        """Record the loss."""
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])


class Scoring(TrainerCallback):
    """Scores the model in the middle of a run, which must not change how it ends."""

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **_):
        """Score after the steps that warm up."""
        if state.global_step == WARM_UP:
            result = score(self.trainer.model, self.trainer.processing_class, load_questions(), "黄大力", [])
            print(f"(scored in the middle: {result.seconds:.1f} s)", flush=True)


def profile(trainer: RecipeTrainer) -> None:
    """Profile one step."""
    trainer.add_callback(StepProfile(WARM_UP))


def use_masks(trainer: RecipeTrainer) -> None:
    """Attention over whole packs, with a mask."""
    attend_over_packs(trainer.base)


def use_peft_layers(trainer: RecipeTrainer) -> None:
    """LoRA layers as PEFT computes them."""
    unfuse_lora(trainer.model)


def use_neither(trainer: RecipeTrainer) -> None:
    """Neither of this repository's ways to compute less."""
    use_masks(trainer)
    use_peft_layers(trainer)


def compile_layers(trainer: RecipeTrainer) -> None:
    """torch.compile for one decoder layer, which serves all of them."""
    use_peft_layers(trainer)
    for layer in trainer.base.model.layers:
        layer.compile()


def use_cpu_head(trainer: RecipeTrainer) -> None:
    """The head on supervised tokens alone, as a CPU runs it."""
    use_masked_lm_head(trainer.base)


def use_needed_tokens(trainer: RecipeTrainer) -> None:
    """Of each pack only what its loss needs, as a CPU computes it."""
    compute_needed_tokens(trainer.base)
    trainer.data_collator = NeededTokens(trainer.data_collator)


def score_midway(trainer: RecipeTrainer) -> None:
    """Score the model during the run."""
    trainer.add_callback(Scoring(trainer))


@contextmanager
def deterministic(model: PreTrainedModel) -> Iterator[None]:
    """What `full_determinism: true` asks of torch, but for variables that a process is started with."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def liger_kernels_removed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, Liger may patch the model; afterwards its kernels are taken out again."""
    rotate, norm, mlp = (getattr(modeling_llama, name) for name in PATCHED_BY_LIGER)
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = rotate
        modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP = norm, mlp
        for module in model.modules():
            module.__dict__.pop("forward", None)


PATCHED_BY_LIGER = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
LIGER = {"use_liger_kernel": True}
KEPT = {"activation_checkpointing": False}

ABLATIONS = (
    Ablation("the recipe", alike="as it stands"),
    Ablation("attention with masks over whole packs", change=use_masks),
    Ablation("PEFT's own LoRA layers", change=use_peft_layers),
    Ablation("both: masks, PEFT's layers", change=use_neither),
    Ablation("the recipe, profiled", change=profile),
    Ablation("`use_liger_kernel: true`", LIGER, around=liger_kernels_removed),
    Ablation("bfloat16", BF16),
    Ablation("TRL's SFTTrainer on the same packs, bfloat16", BF16, by_trl=True),
    Ablation("`torch_compile` of each layer, PEFT's layers", change=compile_layers),
    Ablation("`activation_checkpointing: false`", KEPT),
    Ablation("`activation_checkpointing: false`, `use_liger_kernel: true`", KEPT | LIGER, around=liger_kernels_removed),
    Ablation("`lora_dropout: 0`", {"lora_dropout": 0.0}),
    Ablation("`lora_dropout: 0`, needed tokens alone", {"lora_dropout": 0.0}, change=use_needed_tokens),
    Ablation("4 packs a step", {"per_device_train_batch_size": 4}),
    Ablation("4 packs a step, `use_liger_kernel: true`", LIGER | {"per_device_train_batch_size": 4},
             around=liger_kernels_removed),
    Ablation("the recipe, again", alike="as it stands"),
    Ablation("deterministic", around=deterministic, alike="deterministic"),
    Ablation("deterministic, scored in the middle", change=score_midway, around=deterministic, alike="deterministic"),
    Ablation("deterministic, with masks", change=use_masks, around=deterministic),
    Ablation("`optim: adamw_torch_fused`", {"optim": "adamw_torch_fused"}),
    Ablation("`optim: adamw_8bit`", {"optim": "adamw_8bit"}),
    Ablation("`activation_offloading: true`", {"activation_offloading": True}),
    Ablation("packs of 8,192", {"max_length": 8192}),
    Ablation("packs of 8,192, attention with masks", {"max_length": 8192}, change=use_masks),
    Ablation("the head that a CPU uses", change=use_cpu_head),
)  # fmt: skip


class Bench:
    """Runs ablations of a recipe on one model and one file of rows, and compares the weights they end with."""

    def __init__(self, model: Path, rows: Path, steps: int):
        self.load, self.rows, self.steps = OneLoad(model), str(rows), steps
        self._ends: dict[str, tuple[int, ...]] = {}
        self._meta_models: dict[str, MetaModel] = {}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rate = matmul_rate(self.device, torch.bfloat16, MATRIX[self.device])

    def run(self, ablation: Ablation) -> str:
        """Train once; a row of the table."""
        keys = {"train_file": self.rows, "max_steps": self.steps, "output_dir": tempfile.mkdtemp()}
        recipe = self.load.recipe(**keys | (FP16 if self.device == "cuda" else BF16) | ablation.keys)
        packs, card = self.load.data(recipe)
        times = Times()
        with ablation.around(self.load.base(recipe)):
            trainer = self.load.trainer(recipe, packs, card, by_trl=ablation.by_trl)
            try:
                ablation.change(trainer)
                trainer.add_callback(times)
                started = time.perf_counter()
                _reset_peak()
                trainer.train()
                memory, outside = _peak()
                ended_alike = self._compare(ablation.alike, trainer.model)
            finally:
                self.load.give_back(trainer)
        steps = [end - begin for begin, end in zip(times.ends[WARM_UP - 1 :], times.ends[WARM_UP:], strict=False)]
        step = statistics.median(steps)
        tokens = card.tokens / card.steps_per_epoch
        meta_model = self._meta_model(recipe)
        twice, once = (
            _operations(meta_model, packs, card, recomputes) / step / self.rate
            for recomputes in (recipe.training.activation_checkpointing, False)
        )
        planned = predict_memory(recipe, card, on_gpu=self.device == "cuda", model=meta_model).peak
        return (
            f"| {ablation.label} | {step * 1e3:.0f} ({min(steps) * 1e3:.0f}-{max(steps) * 1e3:.0f}) | {tokens:,.0f} | "
            f"{tokens / step:,.0f} | {card.supervised_tokens / card.steps_per_epoch / step:,.0f} | "
            f"{twice:.1%} | {once:.1%} | {memory / GIB:.2f} | {planned / GIB:.2f} | {outside / GIB:.2f} | "
            f"{times.ends[0] - started:.1f} | {times.losses[0]:.4f} -> {times.losses[-1]:.4f} | {ended_alike} |"
        )

    def _meta_model(self, recipe: Recipe) -> MetaModel:
        key = repr(recipe.model)
        if key not in self._meta_models:
            self._meta_models[key] = MetaModel(recipe.model)
        return self._meta_models[key]

    def _compare(self, kind: str, model: torch.nn.Module) -> str:
        """Whether the trained weights are bit for bit those that the first run of this kind ended with."""
        if not kind:
            return ""
        trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
        whole_numbers = (weights.view(torch.int32 if weights.itemsize == 4 else torch.int16) for weights in trained)
        bits = tuple(numbers.sum(dtype=torch.int64).item() for numbers in whole_numbers)
        first = self._ends.setdefault(kind, bits)
        return f"{kind}: {'bit for bit' if bits == first else 'other weights'}"


HEAD = (
    "| run | ms a step (least-most) | tokens | tokens/s | supervised/s | of the matrix rate | without what is computed "
    "twice | allocated GiB | planned | beside torch | first step, s | loss | weights |",
    "|" + " --- |" * 13,
)


def main() -> None:
    """Run the ablations that were asked for and print a row for each."""
    quiet_the_stack()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder; by default one of InternLM2.5-7B's shape is made")
    parser.add_argument("--rows", type=Path, help="a JSONL file; by default 1,500 rows are made for the tutorial")
    parser.add_argument("--only", nargs="*", default=[], help="words of the runs to make")
    parser.add_argument("--steps", type=int, default=14, help="steps a run (14)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so many seconds")
    arguments = parser.parse_args()
    started = time.perf_counter()
    model, rows = arguments.model, arguments.rows
    if model is None or rows is None:
        default_model, default_rows = tutorial_files("cuda")
        model, rows = model or default_model, rows or default_rows
    bench = Bench(model, rows, arguments.steps)
    name = torch.cuda.get_device_name() if bench.device == "cuda" else "CPU"
    side = MATRIX[bench.device]
    print(f"{name}, torch {torch.__version__}: bf16 products of {side:,} reach {bench.rate / 1e12:,.1f} TFLOP/s")
    print("\n".join(HEAD), flush=True)
    for ablation in ABLATIONS:
        if arguments.only and not any(word in ablation.label for word in arguments.only):
            continue
        if time.perf_counter() - started > arguments.seconds:
            print(f"| {ablation.label} | not run: out of time |" + " |" * 11, flush=True)
            continue
        try:
            print(bench.run(ablation), flush=True)
        except Exception as problem:  # a failure is a result too
            bench.load.forget()
            reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
            print(f"| {ablation.label} | {reason} |" + " |" * 11, flush=True)


def _operations(model: MetaModel, packs: Dataset, card: DatasetCard, recomputes: bool) -> float:
    """Floating-point operations a step, by `benchmarks.operations`."""
    lengths = [length for pack in packs["seq_lengths"] for length in pack]
    parts = operations(sizes_of(model), lengths, card.supervised_tokens, recomputes=recomputes)
    return sum(parts) / card.steps_per_epoch


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> tuple[int, int]:
    """Bytes: the most that torch has allocated since the last reset, and what the card holds outside torch's pool."""
    if not torch.cuda.is_available():
        return 0, 0
    free, whole = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_allocated(), whole - free - torch.cuda.memory_reserved()


if __name__ == "__main__":
    main()
