"""Loading of the networks that turn audio into vectors."""
