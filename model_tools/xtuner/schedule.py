"""What XTuner's `param_scheduler` comes to in a recipe: the warm-up and how the learning rate falls after it.

mmengine runs several schedulers one after another; Transformers has one name for warm-up and fall together.
"""

import math
from typing import Any

from model_tools.xtuner.draft import NUMBER, SWITCH, Part
from model_tools.xtuner.optimizer import Length, amount
from model_tools.xtuner.values import name_of, shown

# A warm-up from so small a share of the learning rate is one from 0.
SMALL_FACTOR = 0.01
# What Transformers has for a scheduler of mmengine's after the warm-up; others are noted.
CONSTANT = "constant"


def read_schedule(config: Part, length: Length) -> None:
    """Set the keys on the learning rate's schedule."""
    draft = config.draft
    schedulers = config.parts("param_scheduler")
    warmup = next((part for part in schedulers[:1] if _is_warmup(part)), None)
    main = schedulers[1 if warmup else 0 :]
    settings = draft.settings
    draft.at_top["warmup_ratio"] = ("param_scheduler", None)
    if warmup is not None:
        _read_warmup(warmup, length)
    else:
        settings["warmup_steps"] = 0
    if main:
        _read_fall(main[0], length, warmup)
    else:
        settings["lr_scheduler_type"] = CONSTANT
        if not config.values.get("param_scheduler"):
            draft.note(
                "param_scheduler: there is none, so the learning rate stays as it is: lr_scheduler_type: constant"
            )
    if settings.get("lr_scheduler_type") == CONSTANT and settings.get("warmup_steps"):
        settings["lr_scheduler_type"] = "constant_with_warmup"
    for part in main[1:]:
        draft.note(
            f"{part.path}.type = {shown(part.values.get('type'))}: one schedule after the warm-up is all there is"
        )


def _is_warmup(part: Part) -> bool:
    start, end = part.values.get("start_factor", 1 / 3), part.values.get("end_factor", 1.0)
    rises = not (amount(start) is not None and amount(end) is not None and start >= end)
    return name_of(part.values.get("type")) in ("LinearLR", "LinearParamScheduler") and rises


def _span(part: Part) -> tuple[Any, Any, bool]:
    """Where a scheduler begins and ends, and whether these are epochs."""
    part.take("type")
    by_epoch = part.get("by_epoch", SWITCH, "lr_scheduler_type", True)
    converted = part.take("convert_to_iter_based", False)
    begin, end = part.take("begin", 0), part.take("end")
    part.expect("verbose", False)
    part.expect("last_step", -1)
    if by_epoch and not converted:
        part.draft.note(
            f"{part.path}: changes the learning rate once an epoch, without convert_to_iter_based; here it changes at "
            "every step"
        )
    return begin, end, bool(by_epoch)


def _read_warmup(part: Part, length: Length) -> None:
    draft, settings = part.draft, part.draft.settings
    start, _ = part.take("start_factor", 1 / 3), part.take("end_factor")
    _, end, by_epoch = _span(part)
    part.expect("begin", 0)
    if (factor := amount(start)) is None or factor > SMALL_FACTOR:
        draft.note(f"{part.shown('start_factor', start)}: the warm-up rises from 0 here")
    draft.note_rest(part)
    if amount(end) is None:
        unknown = part.not_known("end", end, "set warmup_steps yourself")
        draft.note(unknown if end is not None else f"{part.path}: names no end; set warmup_steps yourself")
        return
    whole = length.epochs if by_epoch else length.iterations
    share = end / whole if whole else None
    if share is not None and share < 1:
        settings["warmup_steps"] = round(share, 9) or 0
        draft.at_top["warmup_ratio"] = (f"the share of training in {part.path_of('end')}", settings["warmup_steps"])
    elif not by_epoch:
        settings["warmup_steps"] = draft.steps_of(part, "end", int(end), "warmup_steps")
        draft.at_top["warmup_ratio"] = (part.path_of("end"), end)
    else:
        problem = "how many steps an epoch has shows in the data alone" if not whole else "training ends before"
        draft.note(f"{part.shown('end', end)} epochs: {problem}; set warmup_steps yourself")


def _read_fall(part: Part, length: Length, warmup: Part | None) -> None:
    draft, settings = part.draft, part.draft.settings
    kind, said = name_of(part.values.get("type")), part.shown("type", part.values.get("type"))
    begin, end, by_epoch = _span(part)
    lasts = part.take("T_max")
    name, arguments = _transformers_name(part, kind, settings.get("learning_rate"))
    settings["lr_scheduler_type"] = name
    if arguments:
        settings["lr_scheduler_kwargs"] = arguments
    if name == CONSTANT and kind != "ConstantLR":
        draft.note(f"{said}: no counterpart here: set lr_scheduler_type yourself; it is constant now")
    _note_ends(part, length, by_epoch, (begin, end, lasts), warmup)
    draft.note_rest(part)


def _transformers_name(part: Part, kind: str | None, rate: float | None) -> tuple[str, dict[str, Any]]:
    """The schedule that Transformers has for one of mmengine's, and its arguments."""
    if kind in ("CosineAnnealingLR", "CosineAnnealingParamScheduler"):
        least = part.get("eta_min", NUMBER, "lr_scheduler_kwargs", None)
        share = part.get("eta_min_ratio", NUMBER, "lr_scheduler_kwargs")
        if share:
            return "cosine_with_min_lr", {"min_lr_rate": share}
        return ("cosine_with_min_lr", {"min_lr": least}) if least else ("cosine", {})
    if kind in ("LinearLR", "LinearParamScheduler"):
        part.expect("start_factor", 1, 1.0, advice="the learning rate falls from learning_rate here")
        last = part.get("end_factor", NUMBER, "lr_scheduler_kwargs", 1.0)
        if last == 1:
            return CONSTANT, {}
        return ("polynomial", {"lr_end": last * rate, "power": 1.0}) if last and rate else ("linear", {})
    if kind in ("PolyLR", "PolyParamScheduler"):
        least = part.get("eta_min", NUMBER, "lr_scheduler_kwargs", 0.0)
        return "polynomial", {"lr_end": least, "power": part.get("power", NUMBER, "lr_scheduler_kwargs", 1.0)}
    if kind == "ConstantLR":
        part.expect("factor", 1, 1.0, advice="the learning rate is not scaled here; write it as learning_rate")
    return CONSTANT, {}


def _note_ends(part: Part, length: Length, by_epoch: bool, span: tuple[Any, Any, Any], warmup: Part | None) -> None:
    """Here, the fall begins where the warm-up ends and ends with training; a note where XTuner's does not."""
    draft, (begin, end, lasts) = part.draft, span
    whole, unit = (length.epochs, "epochs") if by_epoch else (length.iterations, "iterations")
    for name, value in (("begin", begin), ("end", end), ("T_max", lasts)):
        if value is not None and amount(value) is None:
            draft.note(part.not_known(name, value, "the fall lasts from the warm-up to the end here"))
    # A cosine is at its least T_max after it begins, wherever it ends.
    name, value = ("end", end) if lasts is None else ("T_max", lasts)
    start = begin if lasts is not None and amount(begin) is not None else 0
    if value is None and name_of(part.values.get("type")) != "ConstantLR":
        draft.note(f"{part.path}: names neither end nor T_max, so XTuner's never falls; it ends with training here")
    elif amount(value) is not None and not (whole and math.isclose(start + value, whole, rel_tol=1e-3)):
        of_all, since = f" of {shown(whole)}" if whole else "", f", from {shown(start)} on" if start else ""
        draft.note(f"{part.shown(name, value)}{of_all} {unit}{since}: it ends with training here")
    rise_ends = amount(warmup.values.get("end")) if warmup else 0
    same_unit = warmup is None or bool(warmup.values.get("by_epoch", True)) == by_epoch
    starts = amount(begin) if same_unit else None
    if starts is not None and rise_ends is not None and not math.isclose(starts, rise_ends, rel_tol=1e-3, abs_tol=1e-9):
        draft.note(f"{part.shown('begin', begin)}: it begins where the warm-up ends here, at {shown(rise_ends)}")
