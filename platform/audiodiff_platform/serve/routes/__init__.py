"""Routes of the HTTP interface, one router per module."""

from audiodiff_platform.serve.routes import encode, generate, models, operations, page, uploads

ROUTERS = (generate.router, uploads.router, encode.router, models.router, operations.router, page.router)
"""All routers."""
