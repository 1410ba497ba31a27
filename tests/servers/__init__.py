"""Local object stores and a Hugging Face Hub, for tests over real HTTP with injected faults."""
