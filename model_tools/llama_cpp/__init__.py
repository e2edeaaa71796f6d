"""llama.cpp at work for `python -m model_tools gguf`: its converter, its quantiser, and itself to read the file."""
