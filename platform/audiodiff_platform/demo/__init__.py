"""The verb `demo`: prepare, train, generate and a report from one recipe."""
