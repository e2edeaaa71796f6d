"""Run one recipe with many settings, one run a GPU, and compare what came out.

    python sweep.py recipes/demo.yaml lora_r=8,16,32,64 lora_alpha=0.25x
    python sweep.py recipes/demo.yaml learning_rate=1e-4,2e-4 --seeds 3      # mean and spread over three seeds
    python sweep.py recipes/demo.yaml lora_r=8,16,32 learning_rate=1e-4,2e-4 --optuna 6

Every combination of the values is a run of train_sft.py in work_dirs/<recipe>.sweep/<point>/; lora_alpha=0.25x keeps
alpha/r at 0.25. sweep.html and sweep.csv there compare them. A point that finished is not repeated unless its settings,
data or model changed. The tokenised data are made once and shared; the quantised base model is not, since bitsandbytes
quantises while it loads, so every run loads the weights anew.

Exit codes: 0 all points finished, 1 some failed, 2 a mistake in the command or the recipe, 128 + n ended by signal n.
"""

import argparse
import importlib.util
import shlex
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

from sft.core.console import quiet_the_stack, say
from sft.core.errors import UserError
from sft.core.language import _, choose_language, lines_shown
from sft.core.streams import guarded
from sft.core.verbs import add_language
from sft.sweeps import planning
from sft.sweeps.grid import read_grid
from sft.sweeps.runner import Interruption, PointRun, make_slots, run_all
from sft.sweeps.sweep import InOrder, Sweep, lock_folder


def main(arguments: list[str]) -> int:
    """Plan a sweep, run its points and compare them; returns the exit code.

    Raises:
        UserError: a mistake in the command or the recipe.
    """
    options = _options(arguments)
    choose_language(options.language)
    values = read_grid(options.grid)
    plan = planning.plan_sweep(options.recipe, values, options.seeds)
    folder = Path("work_dirs") / f"{Path(options.recipe).stem}.sweep"

    with lock_folder(folder) as held, Interruption() as interruption:
        sweep = Sweep(folder, plan.points, shlex.join(["python", "sweep.py", *arguments]), not options.optuna)
        search = _study(sweep, plan, values, options.optuna) if options.optuna else InOrder(sweep)
        free = make_slots(options.jobs, plan.gpus)
        say(f"{len(plan.points)} points in {folder}, {len(free)} at a time on the {'GPU' if plan.gpus else 'CPU'}")
        sweep.report()
        start = partial(PointRun, recipe=options.recipe, folder=folder, launcher=options.launcher, lock=held)
        with closing(run_all(search, start, free, interruption)) as runs:
            for run in runs:
                sweep.keep(run)
                search.tell(run)
        sweep.show()

    if interruption.signal:
        for line in lines_shown([_("The sweep ended before its last point; the same command resumes it.")]):
            say(line)
        return 128 + interruption.signal
    return 1 if sweep.has_failures else 0


def _study(*arguments):
    from sft.sweeps.study import Study  # imports Optuna, which no other sweep needs

    return Study(*arguments)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; a sweep is written: python sweep.py recipes/demo.yaml lora_r=8,16 [--jobs 2]")


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="path of the recipe, such as recipes/demo.yaml")
    parser.add_argument("grid", nargs="*", metavar="key=value,value", help="any key of a recipe, with its values")
    parser.add_argument("--jobs", type=_jobs, metavar="N", help="runs at a time (auto: one a GPU, or one on the CPU)")
    parser.add_argument("--launcher", choices=("deepspeed", "python"), default="deepspeed")
    add_language(parser)
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="run every point with N seeds")
    parser.add_argument("--optuna", type=_count, metavar="N", help="let Optuna choose N points of the grid")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        parser.error(_as_key(unknown[0], arguments))
    if not options.grid and options.seeds == 1:
        parser.error("nothing to compare: no key=value,value and no --seeds")
    if options.optuna and (options.seeds > 1 or not options.grid):
        parser.error("--optuna chooses among the values of key=value,value, with one seed")
    if options.optuna and importlib.util.find_spec("optuna") is None:
        raise UserError("--optuna needs Optuna: python -m pip install -r requirements-sweep.txt")
    return options


def _as_key(unknown: str, arguments: list[str]) -> str:
    """What to write instead of an option that a sweep does not have, which is perhaps a key of the recipe."""
    from sft.config.settings_parser import SettingsParser

    flag, _, value = unknown.partition("=")
    key, keys = flag.lstrip("-").replace("-", "_"), SettingsParser()
    if key not in keys.key_names():
        return f"{flag}: {keys.unknown(key).removeprefix(f'{key}: ')}"
    following = arguments[arguments.index(unknown) + 1 :][:1]
    return f"{flag}: a key of the recipe: write {key}={value or next(iter(following), 'VALUE')}"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number of at least 1")
    return int(text)


def _jobs(text: str) -> int | None:
    return None if text == "auto" else _count(text)


if __name__ == "__main__":
    quiet_the_stack()
    with guarded():
        try:
            sys.exit(main(sys.argv[1:]))
        except UserError as error:
            print(f"sweep.py: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:  # while the plan is made; nothing runs yet
            sys.exit(130)
