"""Adapters: one file each. `tuner` holds what peft's adapters share, `low_rank` LoRA's kin, `targets` finds names."""
