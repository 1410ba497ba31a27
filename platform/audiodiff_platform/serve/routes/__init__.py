"""Routes of the HTTP interface, one router per module."""

from audiodiff_platform.serve.routes import generate, jobs, models, operations, uploads

ROUTERS = (generate.router, uploads.router, models.router, jobs.router, operations.router)
"""All routers."""
