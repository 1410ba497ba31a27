"""Routes of the HTTP interface, one router per module."""

from audiodiff_platform.serve.routes import compat_audio, encode, generate, jobs, models, operations, page, uploads

ROUTERS = (
    generate.router,
    uploads.router,
    compat_audio.router,
    encode.router,
    models.router,
    jobs.router,
    operations.router,
    page.router,
)
"""All routers."""
