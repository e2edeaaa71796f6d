"""Asks the model the evaluation prompts before, during and after training, and keeps its answers.

In: a trainer. Out: answers on the console, in `eval_chat.jsonl` and in TensorBoard. Training is
left bit-identical to a run that asked nothing.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from sft.console import say
from sft.generation import generation_config
from sft.model import leaving_no_trace
from sft.trainer import RecipeTrainer


@dataclass
class Answer:
    """What the model said to one prompt at one step; seconds are the whole batch's."""

    step: int
    prompt: str
    answer: str
    seconds: float
    tokens: int
    stop_reason: str  # "end of turn" or "max_new_tokens"


class ChatEval(TrainerCallback):
    """Asks the recipe's evaluation prompts at step 0, every `eval_prompts_steps` and after the last step.

    `latest` holds the newest answers. Only the main process asks; under ZeRO-3, where each process holds a part of
    every weight, all generate together and the main one keeps the answers.
    """

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer
        self.run = trainer.recipe.run
        self.path = Path(trainer.args.output_dir) / "eval_chat.jsonl"
        self.latest: list[Answer] = []
        self._asked_at = None

    def on_train_begin(self, args, state, control, **_):
        self._ask(state)

    def on_step_end(self, args, state, control, **_):
        every = self.run.eval_prompts_steps
        if control.should_training_stop or (every and state.global_step % every == 0):
            self._ask(state)

    def on_train_end(self, args, state, control, **_):
        self._ask(state)

    def _ask(self, state) -> None:
        if not self.run.eval_prompts or self._asked_at == state.global_step:
            return
        self._asked_at = state.global_step
        if state.is_world_process_zero or is_deepspeed_zero3_enabled():
            answers = ask(
                self.trainer.model,
                self.trainer.processing_class,
                self.run.eval_prompts,
                system=self.run.eval_prompts_system,
                generation=self.run.eval_prompts_generation,
                step=state.global_step,
            )
            self.trainer.forget_zero3_trace()
            if state.is_world_process_zero:
                self._keep(answers)
        self.trainer.accelerator.wait_for_everyone()

    def _keep(self, answers: list[Answer]) -> None:
        self.latest = answers
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        say(f"step {answers[0].step}: evaluation prompts, {answers[0].seconds:.1f} s")
        tensorboard = self.trainer.tensorboard
        for answer in answers:
            say(f"  {answer.prompt}\n    {' '.join(answer.answer.split())}", style="cyan")
            if tensorboard and tensorboard.tb_writer:
                tensorboard.tb_writer.add_text(f"eval_chat/{answer.prompt}", answer.answer, answer.step)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    system: str | None,
    generation: dict,
    step: int = 0,
) -> list[Answer]:
    """Ask all prompts in one left-padded batch; the model, its mode and every random state are left as they were.

    `generation` holds fields of Transformers' GenerationConfig, on top of the model's own.
    """
    opening = [{"role": "system", "content": system}] if system else []
    texts = [
        tokenizer.apply_chat_template(
            [*opening, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    settings = generation_config(model, tokenizer, generation)
    started = time.perf_counter()
    with leaving_no_trace(model):
        output = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            generation_config=settings,
            synced_gpus=is_deepspeed_zero3_enabled(),
        )
    seconds = round(time.perf_counter() - started, 3)
    answers = []
    for prompt, tokens in zip(prompts, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        end = next((place for place, token in enumerate(tokens) if token in settings.eos_token_id), None)
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
        reason = "max_new_tokens" if end is None else "end of turn"
        answers.append(Answer(step, prompt, text, seconds, len(tokens[:end]), reason))
    return answers
