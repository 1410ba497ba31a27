"""The way into every verb: options and recipes, exit status, errors, terminal output."""
