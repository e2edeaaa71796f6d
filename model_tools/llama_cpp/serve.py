"""Serves a GGUF file with llama.cpp on this machine alone, until whoever started it closes its standard input.

    python -m model_tools.llama_cpp.serve FILE

Reads a line that every request must carry as its key, and prints its address. A process of its own, so that what
llama.cpp logs stays away from the console, and a crash of it is no crash of the program that asks.
"""

import os
import sys

# Enough for every question of a check; the whole context of a large model would take gigabytes.
CONTEXT = 4096


def main() -> None:
    """Serve the file that the command line names."""
    import xllamacpp

    [path] = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_gpu_layers = 0
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.warmup = False
    params.ui = False
    params.hostnames = ["127.0.0.1"]
    params.api_keys = [sys.stdin.readline().strip()]
    params.cors_origins = ""
    params.cors_origins_explicit = True
    # Answers as they are: their thinking stays in them.
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    if threads := os.environ.get("OMP_NUM_THREADS"):
        params.cpuparams.n_threads = int(threads)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # Without waiting for an answer that nobody reads.
    os._exit(0)


if __name__ == "__main__":
    main()
