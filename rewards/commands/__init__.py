"""The subcommands of ``winsome`` that train and judge reward models."""
