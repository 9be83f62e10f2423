"""The subcommands of ``winsome`` that train, generate and show the whole circle."""
