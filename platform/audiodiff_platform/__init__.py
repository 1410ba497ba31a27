"""Where the work of audiodiff_core runs: Ray Data, Ray Train and Ray Serve around it, folders on disk between them."""
