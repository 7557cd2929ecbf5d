"""What leaves a finished run: a merged model, a plain LoRA for peft, vLLM and llama.cpp, an upload to the hub.

Imported by `cli` alone. Does not belong here: what a run writes about itself (`runs.artifacts`).
"""
