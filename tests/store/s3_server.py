"""moto's S3 server behind a door that can fail: prints its port, serves until it is killed.

POST /_faults?error=0.2&slow=0.1&seconds=3 makes a fifth of the requests fail with 500 and a tenth
take three seconds; POST /_faults ends that.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Faulty:
    """A WSGI application in front of another one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._faults: dict[str, float] = {}
        self._random = random.Random(0)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_faults":
            self._faults = {name: float(value) for name, value in parse_qsl(environ["QUERY_STRING"])}
            self._random = random.Random(0)  # whatever other tests asked before
            start("200 OK", [("Content-Length", "0")])
            return [b""]
        if self._random.random() < self._faults.get("slow", 0):
            time.sleep(self._faults["seconds"])
        if self._random.random() < self._faults.get("error", 0):
            body = b"<Error><Code>InternalError</Code><Message>made by a test</Message></Error>"
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("500 Internal Server Error", [("Content-Length", str(len(body))), ("Content-Type", "text/xml")])
            return [body]
        return self._inner(environ, start)  # type: ignore[no-any-return]


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, Faulty(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()
