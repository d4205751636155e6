"""The commands, by what they are about. Everything heavy is imported inside the command that needs it."""
