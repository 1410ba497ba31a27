"""serve: models behind HTTP on Ray Serve."""
