"""demo: the whole journey by one recipe."""
