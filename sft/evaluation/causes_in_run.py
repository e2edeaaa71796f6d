"""Causes in how a model was trained why it does not give its name: steps, rates, losses, what was learned and lost.

In: `Evidence`. Out: a `Finding`, or None. Knows nothing about rows and templates.
"""

import math

from sft.core.finding import Finding
from sft.core.language import Text, _, ngettext, same
from sft.evaluation.evidence import FEW_STEPS, SHOWN, Evidence
from sft.runs.run_files import number

ENOUGH_STEPS = 60
# LoRA's usual learning rates are 1e-4 and more; XTuner's is 2e-4.
LOW_RATE, USUAL_RATE = 1e-5, 2e-4
# Some part of this must have been reached, or the rate never rose.
RISEN_SHARE = 0.2
# A loss that ends above this share of where it began, and above so many nats, has learned little.
FLAT_SHARE, FLAT_NATS = 0.95, 0.7
# The share of answers with the name falls by so much from its best: it was lost again.
LOST = 0.3
# A scaler that looks for its scale skips a step now and then; more than this share is too many.
SKIPPED_SHARE = 0.1


def overflow(evidence: Evidence) -> Finding | None:
    """Losses, or many gradients, that are NaN or infinite."""
    log = evidence.run.log if evidence.run else []
    broken = [record for record in log if number(record["loss"]) is None]
    skipped = [record for record in log if "grad_norm" in record and number(record["grad_norm"]) is None]
    # Where no norm at all is finite, none was measured.
    if not broken and not SKIPPED_SHARE * len(log) < len(skipped) < len(log):
        return None
    path = evidence.run.folder / "log.jsonl"
    facts = [
        _(
            "{file}: {losses:,} of {count:,} losses and {norms:,} gradient norms are NaN or infinite",
            file=path,
            losses=len(broken),
            count=len(log),
            norms=len(skipped),
        )
    ]
    facts += [
        _(
            "step {step:,}: loss {loss}, gradient norm {norm}",
            step=record["step"],
            loss=record["loss"],
            norm=record.get("grad_norm"),
        )
        for record in (broken or skipped)[:SHOWN]
    ]
    if evidence.recipe.chosen.get("fp16") or str(evidence.recipe.model.dtype) == "float16":
        do = same(f"{evidence.train} --fp16 false --bf16 true --dtype bfloat16")
        return Finding(_("float16 overflowed: nothing was learned in those steps"), facts, do)
    do = same(f"{evidence.train} --learning_rate {evidence.recipe.training.learning_rate / 10:g}")
    return Finding(_("training overflowed: nothing was learned in those steps"), facts, do)


def few_steps(evidence: Evidence) -> Finding | None:
    """The weights moved a few times only, however many rows there are."""
    if evidence.is_learned or not evidence.steps or evidence.steps >= FEW_STEPS:
        return None
    card = evidence.card
    facts = []
    if card:
        counts = {"sequences": card["packs"], "per_step": card["packs_per_step"], "epochs": evidence.epochs}
        facts = [_("sequences: {sequences:,}; per step: {per_step:,}; epochs: {epochs:.2g}", **counts)]
    wrong = ngettext("only {count} optimizer step", "only {count} optimizer steps", evidence.steps)
    return Finding(wrong, facts, same(_more_steps(evidence)))


def low_learning_rate(evidence: Evidence) -> Finding | None:
    """A learning rate that never rose to what the recipe says, or that is far below what LoRA takes."""
    if evidence.is_learned or evidence.recipe is None or not evidence.recipe.model.use_peft:
        return None
    training, total = evidence.recipe.training, evidence.card.get("total_steps")
    rate = training.learning_rate
    logged = [
        value
        for record in (evidence.run.log if evidence.run else ())
        if (value := number(record["learning_rate"])) is not None
    ]
    facts = [same(f"learning_rate: {rate:g}")]
    if logged:
        facts.append(_("the highest of {count:,} in the log: {rate:g}", count=len(logged), rate=max(logged)))
    if total and training.warmup_steps >= max(total, 1):
        facts.append(
            ngettext(
                "warmup_steps: {warmup:g}, and the run has {count:,} step",
                "warmup_steps: {warmup:g}, and the run has {count:,} steps",
                total,
                warmup=training.warmup_steps,
            )
        )
        return Finding(_("the learning rate is still rising when training ends"), facts, _set("warmup_steps: 0.03"))
    if rate < LOW_RATE:
        facts.append(_("LoRA is usually trained with about {rate:g}", rate=USUAL_RATE))
        return Finding(_("the learning rate is far too low for LoRA"), facts, _set(f"learning_rate: {USUAL_RATE:g}"))
    if len(logged) >= SHOWN and max(logged) < RISEN_SHARE * rate:
        do = _set("warmup_steps: 0.03, lr_scheduler_type: cosine")
        return Finding(_("the learning rate never rose to that of the recipe"), facts, do)
    return None


def flat_loss(evidence: Evidence) -> Finding | None:
    """The loss ended nearly where it began."""
    losses = [
        loss for record in (evidence.run.log if evidence.run else ()) if (loss := number(record["loss"])) is not None
    ]
    if evidence.is_learned or len(losses) < 4 or evidence.steps < FEW_STEPS:
        return None
    quarter = len(losses) // 4
    first, last = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
    if last <= FLAT_SHARE * first or last <= FLAT_NATS:
        return None
    rate = evidence.recipe.training.learning_rate
    facts = [
        _(
            "mean loss {first:.2f} at the start, {last:.2f} at the end, after {steps:,} steps",
            first=first,
            last=last,
            steps=evidence.steps,
        ),
        same(f"learning_rate: {rate:g}"),
    ]
    is_low = evidence.recipe.model.use_peft and rate < USUAL_RATE
    do = f"{evidence.train} --learning_rate {USUAL_RATE:g}" if is_low else _more_steps(evidence)
    return Finding(_("the loss hardly fell"), facts, same(do))


def lost_later(evidence: Evidence) -> Finding | None:
    """The name was learned, and then lost again."""
    scores = evidence.run.scores if evidence.run else []
    scored = [record for record in scores if record.get("identity") is not None and record.get("is_complete", True)]
    if not scored or evidence.recipe.run.keep_best:
        return None
    best, last = max(scored, key=lambda record: record["identity"]), scored[-1]
    if best["identity"] - last["identity"] < LOST:
        return None
    facts = [
        _("step {step:,}: {share:.0%} of the answers give the name", step=each["step"], share=each["identity"])
        for each in (best, last)
    ]
    checkpoint = evidence.run.folder / f"checkpoint-{best['step']}"
    do = same(f"{evidence.train} --keep_best identity")
    if checkpoint.is_dir():
        do = _("use {checkpoint} in place of final/", checkpoint=checkpoint)
    return Finding(_("the name was learned, and forgotten later"), facts, do)


def _set(setting: str) -> Text:
    return _("set {setting}", setting=setting)


def _more_steps(evidence: Evidence) -> str:
    """The command that trains for enough steps: smaller ones where that is enough, else more epochs."""
    training, card = evidence.recipe.training, evidence.card
    if training.max_steps > 0:
        return f"{evidence.train} --max_steps {max(2 * evidence.steps, ENOUGH_STEPS)}"
    if training.gradient_accumulation_steps > 1 and card.get("packs", 0) * training.num_train_epochs >= ENOUGH_STEPS:
        return f"{evidence.train} --gradient_accumulation_steps 1"
    epochs = math.ceil(ENOUGH_STEPS / (card.get("steps_per_epoch") or ENOUGH_STEPS))
    return f"{evidence.train} --num_train_epochs {max(epochs, math.ceil(2 * training.num_train_epochs))}"
