"""Object stores and a Hugging Face Hub on this machine, for tests over real HTTP with injected faults."""
