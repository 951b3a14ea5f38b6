"""A stand-in for the Hugging Face Hub: the routes that its client calls to list a repository and to fetch a file."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lamella.core.listening import listen

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Repositories of files.

    Attributes:
        fetched: names of the files whose bytes were asked for.
        wrong: names of files whose bytes are not what the listing says.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self._repositories = repositories
        self.fetched: list[str] = []
        self.wrong: set[str] = set()
        self.app = Starlette(
            routes=[
                Route("/api/models/{owner}/{name}", self._info),
                Route("/{owner}/{name}/resolve/{revision}/{file:path}", self._file),
            ]
        )

    def _repository(self, request: Request) -> Mapping[str, bytes] | None:
        return self._repositories.get(f"{request.path_params['owner']}/{request.path_params['name']}")

    def _info(self, request: Request) -> Response:
        files = self._repository(request)
        if files is None:
            return JSONResponse({"error": "Repository not found"}, 404, headers={"X-Error-Code": "RepoNotFound"})
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"sha256": _sha256(data), "size": len(data), "pointerSize": 1},
            }
            for name, data in files.items()
        ]
        return JSONResponse({"id": "x", "sha": COMMIT, "siblings": siblings})

    def _file(self, request: Request) -> Response:
        files, name = self._repository(request) or {}, request.path_params["file"]
        if name not in files:
            return JSONResponse({}, 404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = bytes(len(files[name])) if name in self.wrong else files[name]
        if request.method == "GET":
            self.fetched.append(name)
        return Response(data, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{_sha256(files[name])}"'})

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Serve; gives the URL that HF_ENDPOINT takes."""
        with listen("127.0.0.1", 0) as listener:
            server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", ws="none", lifespan="off"))
            thread = threading.Thread(target=server.run, args=[[listener]])
            thread.start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
