"""The subcommands of ``winsome`` that serve the studio and keep its store."""
