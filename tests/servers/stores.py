"""S3 (moto) and GCS (gcp-storage-emulator) servers with credentials, each behind a faulty proxy."""

import http.client
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.server import HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

from tests.servers.faults import Action, Answer, Fault, FaultyProxy, read_body

AWS_ACCESS_KEY = "AKIAONLYINLOCALTESTS"
AWS_SECRET_KEY = "only/in+local/tests/secret/key/of/aws/00"
GCS_TOKEN = "ya29.only-in-local-tests-gcs-token"
# No secret may appear in a log, a dataset or an error message.
SECRETS = (AWS_ACCESS_KEY, AWS_SECRET_KEY, GCS_TOKEN, "BEGIN PRIVATE KEY")

# Objects per page of a listing. Real stores return up to 1000. A small page exposes code that reads one page alone.
PAGE = 10
GCSFS_LAST_BOUNDARY = b"\n--==0==--"


def _s3_answer(status: int, code: str, message: str) -> Answer:
    document = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
        "<RequestId>0</RequestId></Error>"
    )
    return Answer(status, document.encode(), "application/xml")


def _gcs_answer(status: int, reason: str, message: str) -> Answer:
    error = {
        "code": status,
        "message": message,
        "errors": [{"domain": "usageLimits", "reason": reason, "message": message}],
    }
    return Answer(status, json.dumps({"error": error}).encode(), "application/json; charset=UTF-8")


S3_ANSWERS = {
    "throttle": _s3_answer(503, "SlowDown", "Please reduce your request rate."),
    "unavailable": _s3_answer(500, "InternalError", "We encountered an internal error. Please try again."),
}
GCS_ANSWERS = {
    "throttle": _gcs_answer(
        429, "rateLimitExceeded", "The rate of change requests to the object exceeds the rate limit."
    ),
    "unavailable": _gcs_answer(503, "backendError", "We encountered an internal error. Please try again."),
}


@dataclass(frozen=True)
class Store:
    """An object store by its scheme. Faults name an object by its URI."""

    scheme: Literal["s3", "gs"]
    proxy: FaultyProxy

    def make_bucket(self) -> str:
        """Create an empty bucket and return its URI."""
        name = f"bucket-{uuid.uuid4().hex}"
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port())
        if self.scheme == "s3":
            connection.request("PUT", f"/{name}")
        else:
            headers = {"Authorization": f"Bearer {GCS_TOKEN}", "Content-Type": "application/json"}
            connection.request("POST", "/storage/v1/b", json.dumps({"name": name}), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()
        return f"{self.scheme}://{name}"

    def fail_read(self, action: Action, uri: str, times: int = 1) -> Fault:
        """Make the next reads of an object's content fail."""
        bucket, key = self._split(uri)
        return self.proxy.inject(
            action,
            "GET",
            f"/{bucket}/{key}" if self.scheme == "s3" else f"/download/storage/v1/b/{bucket}/o/{key}",
            times,
        )

    def fail_write(self, action: Action, uri: str, times: int = 1) -> Fault:
        """Make the next uploads of an object, or of a part of it, fail."""
        bucket, key = self._split(uri)
        if self.scheme == "s3":
            return self.proxy.inject(action, "PUT", f"/{bucket}/{key}", times)
        return self.proxy.inject(action, "POST", key, times)

    def fail_listing(self, action: Action, uri: str, times: int = 1) -> Fault:
        """Make the next listings of the bucket of `uri` fail."""
        bucket, _ = self._split(uri)
        return self.proxy.inject(
            action, "GET", f"/{bucket}?" if self.scheme == "s3" else f"/storage/v1/b/{bucket}/o?", times
        )

    @staticmethod
    def _split(uri: str) -> tuple[str, str]:
        bucket, _, key = uri.partition("://")[2].partition("/")
        return bucket, key


@dataclass(frozen=True)
class Stores:
    """Both stores. Their servers start with the first request."""

    s3: Store
    gs: Store

    @classmethod
    def create(cls) -> "Stores":
        return cls(Store("s3", FaultyProxy(start_s3, S3_ANSWERS)), Store("gs", FaultyProxy(start_gcs, GCS_ANSWERS)))

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the variables by which clients find the stores and their credentials.

        Writes the key file of a service account into `folder`.
        """
        key_file = folder / "service-account.json"
        key_file.write_text(json.dumps(_service_account(f"{self.gs.proxy.url}/token")))
        key_file.chmod(0o600)
        return {
            "AWS_ENDPOINT_URL": self.s3.proxy.url,
            "AWS_ACCESS_KEY_ID": AWS_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": AWS_SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "STORAGE_EMULATOR_HOST": self.gs.proxy.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(key_file),
        }

    def close(self) -> None:
        self.s3.proxy.close()
        self.gs.proxy.close()


def start_s3() -> int:
    """Start moto's server in a thread of this process and return its port."""
    from moto.server import ThreadedMotoServer  # its import takes a second

    os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = str(PAGE)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    return server.get_host_and_port()[1]


def start_gcs() -> int:
    """Start the emulator in a thread of this process and return its port.

    The emulator handles one request at a time, because its storage is not thread-safe.
    """
    handler: Callable[..., RequestHandler] = partial(_GcsHandler, Storage(use_memory_fs=True))
    server = _GcsServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, name="gcs", daemon=True).start()
    return server.server_port


class _GcsServer(HTTPServer):
    request_queue_size = 128


class _GcsHandler(RequestHandler):  # type: ignore[misc]
    """The emulator with the features that it lacks.

    The handler adds credentials, conditional creation, listings in pages and content that ends in a carriage return.
    """

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.path != "/token" and self.headers.get("Authorization") != f"Bearer {GCS_TOKEN}":
            self._answer(401, {"error": {"code": 401, "message": "Login Required"}})
            return False
        return True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        listed = re.fullmatch(r"/storage/v1/b/([^/]+)/o", url.path)
        if not listed or listed[1] not in self.storage.buckets:
            super().do_GET()
            return
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        files, prefixes = self.storage.get_file_list(listed[1], query.get("prefix"), query.get("delimiter"))
        entries: list[tuple[str, Any]] = sorted(
            [(prefix, None) for prefix in prefixes] + [(file["name"], file) for file in files]
        )
        entries = [(name, file) for name, file in entries if name >= query.get("startOffset", "")]
        start = int(query.get("pageToken", 0))
        end = start + min(PAGE, int(query.get("maxResults", PAGE)))
        page = entries[start:end]
        content = {"items": [file for _, file in page if file], "prefixes": [name for name, file in page if not file]}
        self._answer(
            200, {"kind": "storage#objects", **content, **({"nextPageToken": str(end)} if end < len(entries) else {})}
        )

    def do_POST(self) -> None:
        body = read_body(self)
        if self.path == "/token":
            self._answer(200, {"access_token": GCS_TOKEN, "expires_in": 3600, "token_type": "Bearer"})
        elif (wanted := parse_qs(urlsplit(self.path).query).get("ifGenerationMatch")) and wanted[0] != self._generation(
            body
        ):
            self._answer(
                412,
                {"error": {"code": 412, "message": "At least one of the pre-conditions you specified did not hold."}},
            )
        else:
            # The e-mail parser strips CR LF as one line end. The added CR protects a CR that ends the content.
            if body.endswith(GCSFS_LAST_BOUNDARY):
                body = body.removesuffix(GCSFS_LAST_BOUNDARY) + b"\r" + GCSFS_LAST_BOUNDARY
            del self.headers["Content-Length"]
            self.headers["Content-Length"] = str(len(body))
            self.rfile = BytesIO(body)
            super().do_POST()

    def _generation(self, body: bytes) -> str:
        """Return the generation of the object that an upload names, "0" if there is none."""
        url = urlsplit(self.path)
        bucket = url.path.split("/b/")[1].split("/")[0]
        named = parse_qs(url.query).get("name") or [
            json.loads(name) for name in re.findall(rb'"name": ("(?:[^"\\]|\\.)*")', body[:1000])
        ]
        stored = self.storage.objects.get(bucket, {}).get(named[0])
        return str(stored["generation"]) if stored else "0"

    def _answer(self, status: int, content: dict[str, object]) -> None:
        document = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(document)))
        self.end_headers()
        self.wfile.write(document)


def _service_account(token_uri: str) -> dict[str, str]:
    """Return the content of a key file whose tokens come from `token_uri`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "type": "service_account",
        "project_id": "audiodiff-tests",
        "private_key_id": "0",
        "private_key": pem.decode(),
        "client_email": "tests@audiodiff-tests.iam.gserviceaccount.com",
        "client_id": "0",
        "token_uri": token_uri,
    }
