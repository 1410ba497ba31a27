"""Common start and end of every verb: options and recipes, errors, terminal output, exit status."""
