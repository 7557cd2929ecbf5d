"""Adapters: one file each. `low_rank` holds what LoRA and DoRA share, `targets` finds names that match nothing."""
