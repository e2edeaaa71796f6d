"""Quantises a GGUF file with llama.cpp's own function, as its `llama-quantize` does.

    python -m model_tools.llama_cpp.quantise FILE OUT TYPE

A process of its own, so that what llama.cpp logs stays away from the console.
"""

import os
import sys

from gguf import LlamaFileType


def main() -> None:
    """Quantise the file that the command line names."""
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize

    path, out, kind = sys.argv[1:]
    params = LlamaModelQuantizeParams()
    params.ftype = int(LlamaFileType[f"MOSTLY_{kind.upper()}"])
    params.nthread = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    model_quantize(path, out, params)


if __name__ == "__main__":
    main()
