"""Command line of the verbs: options and recipes, errors, terminal output, exit status."""
