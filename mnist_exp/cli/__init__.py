"""The commands: each module reads its arguments and sets the exit status."""
