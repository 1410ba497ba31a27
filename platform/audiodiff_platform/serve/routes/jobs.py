"""Routes of jobs: requests whose results are made after the response, and kept for a time."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from audiodiff_platform.serve.bodies import MAX_REQUESTS, call_of
from audiodiff_platform.serve.calls import Call
from audiodiff_platform.serve.errors import ApiError, Problem, invalid
from audiodiff_platform.serve.job_content import extension_of, zipped
from audiodiff_platform.serve.job_record import Job
from audiodiff_platform.serve.job_runner import JobRunner
from audiodiff_platform.serve.result_folder import NO_RESULTS, Results, on_results
from audiodiff_platform.serve.results import MAX_PAGE
from audiodiff_platform.serve.routes.generate import json_body
from audiodiff_platform.serve.routes.openapi import any_content
from audiodiff_platform.serve.routes.responses import reserved
from audiodiff_platform.serve.services import Served, Services
from audiodiff_platform.serve.stored_calls import stored

router = APIRouter(tags=["jobs"])


async def _results(request: Request) -> Results:
    results: Results | None = request.app.state.results
    if results is None:
        raise ApiError(NO_RESULTS)
    return results


Kept = Annotated[Results, Depends(_results)]


@router.post("/v1/jobs", openapi_extra={"requestBody": {"content": any_content(), "required": False}})
async def create(request: Request, services: Served, results: Kept) -> dict[str, Any]:
    """Create a job of a request of any kind, or of a list of requests. Audio is sent in base64."""
    data = await json_body(request)
    entries = data if isinstance(data, list) else [data]
    if not 1 <= len(entries) <= MAX_REQUESTS:
        raise invalid(f"the body must be a request, or a list of 1 to {MAX_REQUESTS} requests")
    calls = [
        _call(services, entry, f"request {index}: " if len(entries) > 1 else "") for index, entry in enumerate(entries)
    ]
    usage = reserved(services, request, calls)
    usage.charge_reserved()  # before the job exists: it runs although its client leaves now
    try:
        job = await on_results(results.jobs.create, usage.key, *stored(calls))
    except ApiError:
        usage.take_back()
        raise
    request.app.state.runner.look()
    return (await _described(request, results, [job]))[0]


@router.get("/v1/jobs")
async def page(
    request: Request,
    results: Kept,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """List the jobs of the API key, the newest first. `after` is the id of the last job of the previous page."""
    found = await on_results(results.jobs.page, request.state.usage.key, limit, after)
    jobs = await _described(request, results, found.jobs)
    return {"object": "list", "data": jobs, "has_more": found.has_more}


@router.get("/v1/jobs/{job_id}")
async def read(request: Request, results: Kept, job_id: str) -> dict[str, Any]:
    """Return the status and the progress of a job."""
    job = await on_results(results.jobs.get, request.state.usage.key, job_id)
    return (await _described(request, results, [job]))[0]


@router.get("/v1/jobs/{job_id}/content", response_class=Response)
async def content(
    request: Request, results: Kept, job_id: str, index: Annotated[int | None, Query(ge=0, lt=MAX_REQUESTS)] = None
) -> Response:
    """Return the audio of a completed job. That of a list is a zip file, or with `index` the audio of one request."""
    owner = request.state.usage.key
    job = await on_results(results.jobs.get, owner, job_id)
    if index is None and len(job.requests) > 1:
        if job.status != "completed":
            message = f"job {job_id} has no content: its status is {job.status}"
            raise ApiError(Problem(404, message, "job_not_found"))

        def parts() -> Iterator[bytes]:
            return zipped(job, lambda number: results.jobs.content(owner, job_id, number)[1])

        headers = {"Content-Disposition": f'attachment; filename="{job_id}.zip"'}
        return StreamingResponse(parts(), media_type="application/zip", headers=headers)
    item, file = await on_results(results.jobs.content, owner, job_id, index or 0)
    named = f'attachment; filename="{job_id}-{item.index:04d}{extension_of(item)}"'
    headers = {"Content-Disposition": named, "ETag": f'"{item.sha256[:32]}"'}
    headers |= {f"X-Audiodiff-{name.title()}": str(item.details[name]) for name in ("seed", "model", "digest")}
    return Response(file, media_type=item.media_type, headers=headers)


@router.delete("/v1/jobs/{job_id}")
async def delete(request: Request, results: Kept, job_id: str) -> dict[str, Any]:
    """Cancel a job that has not ended, or delete an ended job with its results."""
    owner = request.state.usage.key
    job = await on_results(results.jobs.get, owner, job_id)
    if job.completed_at is None:
        job = await on_results(results.jobs.cancel, owner, job_id)
        request.app.state.runner.stop(job_id)
        if job.status == "cancelled":
            return (await _described(request, results, [job]))[0]
    await on_results(results.jobs.delete, owner, job_id)
    return {"id": job_id, "object": "job.deleted", "deleted": True}


def _call(services: Services, entry: Any, where: str) -> Call:
    if not isinstance(entry, dict):
        raise invalid(f"{where}a request must be an object")
    try:
        return services.addressed(call_of(entry))
    except ApiError as error:
        problem = error.problem
        raise ApiError(Problem(problem.status, where + problem.message, problem.code, problem.param)) from error


async def _described(request: Request, results: Results, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return jobs as JSON values."""
    is_waiting = any(job.status == "queued" and job.attempts == 0 for job in jobs)
    waiting = await on_results(results.jobs.waiting) if is_waiting else []
    runner: JobRunner = request.app.state.runner

    def described(job: Job) -> dict[str, Any]:
        place: dict[str, Any] = {}
        if job.id in waiting:
            position = waiting.index(job.id)
            place = {"queue_position": position, "estimate_s": runner.estimate_s(position)}
        return {
            "id": job.id,
            "object": "job",
            "status": job.status,
            "created_at": job.created_at,
            "completed_at": job.completed_at,
            "expires_at": job.expires_at,
            "progress": 100.0 if job.status == "completed" else 0.0,
            "count": len(job.requests),
            **job.progress,
            **place,
            "items": [item.model_dump(exclude={"file"}) for item in job.items],
            "error": None if job.error is None else job.error.model_dump(),
        }

    return [described(job) for job in jobs]
