"""What DeepSpeed's ZeRO writes of a run: the weights in training precision, and the optimizer's float32 masters.

In: a folder of `*_model_states.pt` and `*_optim_states.pt`, of any stage and any number of processes. Out: what was
trained, by the names of the model that DeepSpeed was given. The parts are put together by DeepSpeed's own code.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sft.core.errors import UserError
from sft.core.text import counted
from sft.models import restricted_pickle

if TYPE_CHECKING:
    import torch

MODEL_FILES, OPTIMIZER_FILES = "*_model_states.pt", "*_optim_states.pt"


class ZeroCheckpoint:
    """One folder of ZeRO's files; `state` is what the first of them says of the run.

    Raises:
        UserError: a file is damaged or holds more than data.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.model_files = sorted(self.folder.glob(MODEL_FILES))
        self.optimizer_files = sorted(self.folder.glob(OPTIMIZER_FILES))
        state = restricted_pickle.load_data(self.model_files[0])
        weights = (state.get("module") or state.get("state_dict")) if isinstance(state, dict) else None
        if not isinstance(state, dict) or not isinstance(weights, dict):
            raise UserError(f"{self.model_files[0]}: holds no weights: is it a file of DeepSpeed's?")
        self.state, self._saved = state, weights

    @classmethod
    def find(cls, path: Path) -> ZeroCheckpoint | None:
        """The checkpoint that a folder is, that its `latest` names, or that of its last `global_step`; None if none."""
        latest = path / "latest"
        tagged = [path / latest.read_text(encoding="utf-8", errors="replace").strip()] if latest.is_file() else []
        steps = sorted(path.glob("global_step*"), key=lambda step: int(re.sub(r"\D", "", step.name) or 0), reverse=True)
        folders = [path, *tagged, *steps] if path.is_dir() else []
        return next((cls(folder) for folder in folders if any(folder.glob(MODEL_FILES))), None)

    @property
    def stage(self) -> int:
        """0 for weights without any optimizer that ZeRO has divided."""
        if self.optimizer_files:
            return int(self._optimizer.get("zero_stage", 0))
        return 3 if self.model_files[0].name.startswith("zero_pp_rank") else 0

    @property
    def processes(self) -> int:
        """How many processes each hold a part of the optimizer, whether their files are all there or not."""
        count = self._optimizer.get("partition_count", 1) if self.optimizer_files else len(self.model_files)
        return max(count) if isinstance(count, list) else count

    @property
    def description(self) -> str:
        """In a few words, such as `ZeRO-2, 2 processes`."""
        stage = f"ZeRO-{self.stage}" if self.stage else "DeepSpeed without ZeRO"
        return f"{stage}, {counted(self.processes, 'process')}"

    @cached_property
    def trained(self) -> dict[str, torch.Tensor]:
        """Each trained parameter by its name, as a meta tensor; where the file lists only weights, all of them."""
        import torch

        groups = self.state.get("param_shapes") or [{name: value.shape for name, value in self._saved.items()}]
        shapes = {name: shape for group in groups for name, shape in group.items()}
        types = {name: value.dtype for name, value in self._saved.items()}
        return {name: torch.empty(shape, dtype=types.get(name), device="meta") for name, shape in shapes.items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained, in the precision it was trained in.

        Raises:
            UserError: files or tensors are missing.
        """
        if absent := self.trained.keys() - self._saved.keys():
            raise UserError(f"{self.model_files[0]}: lacks {min(absent)}, which was trained: try --fp32")
        if self.stage < 3:
            return {name: self._saved[name] for name in self.trained}
        # Stage 3 leaves empty tensors here; what it trains with is the masters, rounded.
        return {name: master.to(self.trained[name].dtype) for name, master in self.masters().items()}

    def masters(self) -> dict[str, torch.Tensor]:
        """What was trained, as the optimizer holds it, in float32.

        Raises:
            UserError: files are missing, damaged, or hold more than data.
        """
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        if missing := self.missing():
            raise UserError(f"{self.folder}: {missing}: copy the whole folder")
        files = [*self.model_files, *self.optimizer_files]
        for file in files:
            # Each by itself, so that the one that is refused is named.
            restricted_pickle.load_data(file)
        output, folder = io.StringIO(), self.folder.resolve()
        with restricted_pickle.only_data(*files), redirect_stdout(output), redirect_stderr(output):
            masters = get_fp32_state_dict_from_zero_checkpoint(
                str(folder.parent), tag=folder.name, exclude_frozen_parameters=True
            )
        return {name: masters[name] for name in self.trained}

    def missing(self) -> str | None:
        """What the folder lacks of the optimizer's files, in words."""
        if not self.optimizer_files:
            return "holds no optimizer files (*_optim_states.pt)"
        if len(self.optimizer_files) != self.processes:
            return f"holds {len(self.optimizer_files)} of {self.processes} optimizer files (*_optim_states.pt)"
        return None

    def problems(self) -> list[str]:
        """What is missing or damaged, a sentence each; no weights are read."""
        missing = self.missing()
        problems = [f"{self.folder}: {missing}: copy the whole folder"] if missing else []
        for file in (*self.model_files, *self.optimizer_files):
            try:
                restricted_pickle.load_data(file)
            except UserError as problem:
                problems.append(str(problem))
        return problems

    @cached_property
    def _optimizer(self) -> dict:
        state = restricted_pickle.load_data(self.optimizer_files[0])
        optimizer = state.get("optimizer_state_dict") if isinstance(state, dict) else None
        if not isinstance(optimizer, dict):
            raise UserError(f"{self.optimizer_files[0]}: holds no optimizer state: is it a file of DeepSpeed's?")
        return optimizer
