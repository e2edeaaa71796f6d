"""Asks the model the evaluation prompts before, during and after training, and records its answers.

In: a trainer. Out: answers on the console, in `eval_chat.jsonl` and in TensorBoard. Training stays bit-identical to a
run that asked nothing.
"""

import json
import time
from dataclasses import asdict
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from sft.core.console import say, waiting
from sft.core.text import one_line
from sft.models.generate import CUT_IN_THINKING, reply_to_all, room_for
from sft.models.model_state import is_in_parts
from sft.runs.run_files import ANSWERS, Answer
from sft.training.trainer import RecipeTrainer


class Evaluation(TrainerCallback):
    """Something done with the model at step 0, every `eval_prompts_steps` and after the last step, once for a step."""

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer
        self.run = trainer.recipe.run
        self._done_at: int | None = None

    def evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        """What is done; called in every process, once for a step."""
        raise NotImplementedError

    def on_train_begin(self, args, state, control, **_):
        """Evaluate the untrained model; a resumed run did so at its step before the checkpoint was saved."""
        if not state.global_step:
            self._once(state, control)

    def on_step_end(self, args, state, control, **_):
        """Evaluate every `eval_prompts_steps` and where training is about to stop."""
        every = self.run.eval_prompts_steps
        if control.should_training_stop or (every and state.global_step % every == 0):
            self._once(state, control)

    def on_evaluate(self, args, state, control, **_):
        """Evaluate where the held-out loss ends training, before trackers close and the step is saved."""
        if control.should_training_stop:
            self._once(state, control)

    def on_train_end(self, args, state, control, **_):
        """Evaluate after the last step."""
        self._once(state, control)

    def _once(self, state, control) -> None:
        if self._done_at != state.global_step:
            self._done_at = state.global_step
            self.evaluate(state, control)
            self.trainer.forget_zero3_trace()


class ChatEval(Evaluation):
    """Asks the recipe's evaluation prompts; `latest` holds the newest answers.

    Only the main process asks; where each process holds a part of every weight, all generate together and the main one
    records the answers.
    """

    def __init__(self, trainer: RecipeTrainer):
        super().__init__(trainer)
        self.path = trainer.run_directory / ANSWERS
        self.latest: list[Answer] = []

    def evaluate(self, state, control) -> None:
        """Ask, print and record."""
        if self.run.eval_prompts and (state.is_world_process_zero or is_in_parts(self.trainer.model)):
            with waiting(f"step {state.global_step}: asking the evaluation prompts"):
                answers = ask(
                    cast(PreTrainedModel, self.trainer.model),
                    self.trainer.processing_class,
                    self.run.eval_prompts,
                    system=self.trainer.asked_system,
                    generation=self._generation(),
                    step=state.global_step,
                )
            if state.is_world_process_zero:
                self._record(answers)
        self.trainer.accelerator.wait_for_everyone()

    def _generation(self) -> dict[str, Any]:
        """How answers are made: as chosen, and where their length was not, with room for thinking."""
        generation = dict(self.run.eval_prompts_generation or {})
        if "max_new_tokens" not in (self.trainer.recipe.chosen.get("eval_prompts_generation") or {}):
            generation["max_new_tokens"] = room_for(generation["max_new_tokens"], self.trainer.processing_class)
        return generation

    def _record(self, answers: list[Answer]) -> None:
        self.latest = answers
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        say(f"step {answers[0].step}: evaluation prompts, {answers[0].seconds:.1f} s")
        tensorboard = self.trainer.tensorboard
        for answer in answers:
            say(f"  {answer.prompt}\n    {one_line(answer.answer)}", style="cyan")
            if answer.stop_reason == CUT_IN_THINKING:
                advice = "raise max_new_tokens in eval_prompts_generation, or set chat_template_kwargs: "
                say(f"    cut while it was thinking: {advice}{{enable_thinking: false}}", style="yellow")
            if tensorboard and tensorboard.tb_writer:
                tensorboard.tb_writer.add_text(f"eval_chat/{answer.prompt}", answer.answer, answer.step)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    system: str | None,
    generation: dict[str, Any] | None,
    step: int = 0,
) -> list[Answer]:
    """Ask all prompts in one left-padded batch; the model, its mode and every random state stay as they were.

    `generation` holds fields of Transformers' GenerationConfig, on top of the model's own.
    """
    system_message = [{"role": "system", "content": system}] if system else []
    started = time.perf_counter()
    conversations = [[*system_message, {"role": "user", "content": prompt}] for prompt in prompts]
    replies = reply_to_all(model, tokenizer, conversations, generation or {})
    seconds = round(time.perf_counter() - started, 3)
    return [
        Answer(step, prompt, reply.text, seconds, reply.tokens, reply.stop_reason)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
