"""Reference models: our own, of papers whose models no library has; one file each.

Each has ``Config``, a frozen dataclass of what ``--set`` may change, and ``make(config)``, which
gives the Model with the weights it starts from. They train through edgekit's operators, which
enter an exported graph whole.
"""
