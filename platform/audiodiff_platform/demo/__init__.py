"""The verb `demo`: prepare, train and generate from one recipe, and a report."""
