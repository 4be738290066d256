"""The commands with which an operator reads and tends a data directory. Each has `add_arguments` and `run`."""
