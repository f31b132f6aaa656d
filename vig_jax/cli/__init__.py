"""The `vig` command: one module per subcommand, each with `configure(parser)` and `run(args)`."""
