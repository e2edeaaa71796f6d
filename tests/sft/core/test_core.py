"""The core as a whole: whoever imports it waits for no torch."""

import subprocess
import sys

from sft.core.paths import REPOSITORY


def test_the_core_imports_no_torch_and_nothing_of_the_stack():
    modules = [f"sft.core.{path.stem}" for path in (REPOSITORY / "sft" / "core").glob("[!_]*.py")]
    program = f"import sys, importlib; [importlib.import_module(name) for name in {modules}]; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "trl", "peft", "datasets", "numpy"} & set(imported.stdout.split())
