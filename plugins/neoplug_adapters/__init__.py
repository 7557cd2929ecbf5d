"""Adapters, one file each. Bases: `tuner` for adapters of peft, `low_rank` for LoRA and its variants, `virtual_tokens`.

`targets` finds the modules that an adapter's options name.
"""
