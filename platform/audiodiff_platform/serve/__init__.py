"""The verb `serve`: an HTTP server for models, on Ray Serve."""
