"""Export of finished runs: merged models, plain LoRAs for peft, vLLM and llama.cpp, uploads to the hub.

Imported by `cli` alone. Does not belong here: the files that a run writes itself (`runs.artifacts`).
"""
