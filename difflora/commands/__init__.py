"""The verbs of the command line, one file each: `run(words) -> exit code`."""
