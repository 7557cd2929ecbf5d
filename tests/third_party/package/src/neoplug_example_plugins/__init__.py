"""A stranger's plugins: a loss, an adapter that is no peft, a probe, and one that cannot be imported."""
