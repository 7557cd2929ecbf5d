"""Third-party plugins: a loss, an adapter without peft, a probe, and a plugin that cannot be imported."""
