"""Makes a GGUF file of a model's folder with llama.cpp's own converter and quantiser.

In: a folder, its tokenizer and a type. Out: a file. Nothing here computes a weight.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from model_tools.checkpoints.model_folder import display_name
from model_tools.llama_cpp import engine, programs, staging
from sft.core.console import waiting
from sft.core.errors import UserError

IN_BETWEEN = "auto"  # the converter's name for the 16-bit type that loses least
IN_BETWEEN_BITS = 16.0
LARGER = 1.1  # a file holds tokens too, and some weights in a larger type than it is named for
SLOTS = ("eot", "eom")  # where a GGUF file has room for ends of an answer beside its eos


@dataclass(frozen=True)
class Conversion:
    """How a model, whose answers end at the tokens `ends`, becomes a GGUF file."""

    model: Path
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]
    kind: str
    sources: Path
    quantiser: list[str] | None

    def write(self, work: Path) -> Path:
        """Write the file somewhere in an empty folder.

        Raises:
            UserError: llama.cpp's converter or quantiser cannot.
        """
        staged = work / "model"
        staged.mkdir()
        staging.stage(self.model, self.tokenizer, staged)
        written = work / f"{self.kind}.gguf"
        if not self.quantiser:
            self._convert(staged, written, self.kind)
            return self._with_all_ends(written)
        between = work / "between.gguf"
        self._convert(staged, between, IN_BETWEEN)
        with waiting(f"quantising to {self.kind}"):
            failed = programs.run([*self.quantiser, str(between), str(written), self.kind])
        if failed is not None:
            raise UserError(f"{self.model}: llama.cpp cannot quantise it to {self.kind}: {programs.last_line(failed)}")
        between.unlink()
        return self._with_all_ends(written)

    def _convert(self, staged: Path, out: Path, kind: str) -> None:
        name = display_name(self.model)
        command = [sys.executable, str(self.sources / programs.CONVERTER), str(staged)]
        with waiting("llama.cpp's converter reads the weights"):
            failed = programs.run([*command, "--outfile", str(out), "--outtype", kind, "--model-name", name])
        if failed is not None:
            raise UserError(f"{self.model}: {_reason(failed)}")

    def _with_all_ends(self, written: Path) -> Path:
        """The file in which llama.cpp finds every end of an answer: it knows some by their names, and the eos."""
        with engine.opened(written) as asked:
            missed = [end for end in self.ends if not asked.stops_at(end)]
        if not missed:
            return written
        named = [
            word for slot, end in zip(SLOTS, missed, strict=False) for word in ("--special-token-by-id", slot, end)
        ]
        out = written.with_name(f"ended-{written.name}")
        command = [sys.executable, str(self.sources / programs.NEW_METADATA), *map(str, named), str(written), str(out)]
        failed = programs.run(command)
        if failed is not None:
            raise UserError(f"{self.model}: its end tokens cannot be written: {programs.last_line(failed)}")
        written.unlink()
        return out


def bytes_needed(weights: int, kind: str) -> int:
    """How much room a model of so many weights takes on the disk while it is made a file of this type."""
    bits = programs.TYPES[kind] if kind in programs.CONVERTED else programs.TYPES[kind] + IN_BETWEEN_BITS
    return int(weights * bits / 8 * LARGER) + (64 << 20)


def _reason(printed: str) -> str:
    """Why the converter failed, and what to do."""
    if "BPE pre-tokenizer was not recognized" in printed:
        return (
            "llama.cpp's converter does not know how this tokenizer splits text (its BPE pre-tokenizer is not in its "
            "list): name a newer checkout with --llama-cpp"
        )
    last = programs.last_line(printed)
    if "not supported" in last:
        return f"llama.cpp's converter does not know this model ({last}): name a newer checkout with --llama-cpp"
    return f"llama.cpp's converter fails: {last}"
