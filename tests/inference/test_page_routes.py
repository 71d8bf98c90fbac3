"""What the page lets strangers reach: uploads of their own, and nothing else of the server."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.inference.serving import get, post, run_app

from phi3v.inference.guard import Bounds, Guard
from phi3v.inference.service import Service
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings

SECRET = "the secret of the server"


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uploads")
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
    return folder


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("private") / "secret.txt"
    file.write_text(SECRET)
    return file


def serve_page(model: Any, processor: Phi3VProcessor, uploads: Path, **options: Any) -> Any:
    from phi3v.inference.app import mount_page

    service = Service(model, processor, "tiny")
    app = FastAPI()
    settings = GenerationSettings(max_new_tokens=4)
    mount_page(app, service, settings, uploads=uploads, max_bytes=1 << 20, **options)
    return run_app(Guard(app, Bounds(max_body_bytes=2 << 20)), service.scheduler.close)


@pytest.fixture(scope="module")
def url(model: Any, processor: Phi3VProcessor, uploads: Path) -> Iterator[str]:
    with serve_page(model, processor, uploads) as port:
        yield f"http://127.0.0.1:{port}"


def upload(url: str, content: bytes = b"content", name: str = "a.png") -> str:
    reply = post(f"{url}/gradio_api/upload", files={"files": (name, content)})
    assert reply.status_code == 200
    return str(reply.json()[0])


def ask(url: str, *paths: str) -> str:
    """Submit a question with files, as the browser does, and return what the page is told."""
    config = get(f"{url}/config").json()
    submit = next(one for one in config["dependencies"] if one["targets"][0][1] == "submit")
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
    values = {"seed": -1, "value": 1}
    ids = {one["id"]: one for one in config["components"]}
    data = [
        {"text": "What?", "files": files},
        *(ids[place]["props"].get("value", values["value"]) for place in submit["inputs"][1:]),
    ]
    session = uuid.uuid4().hex
    body = {"data": data, "fn_index": submit["id"], "session_hash": session, "trigger_id": None}
    assert post(f"{url}/gradio_api/queue/join", json=body).status_code == 200
    told = ""
    stream = f"{url}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", stream, timeout=30) as reply:
        for line in reply.iter_lines():
            told += line
            if "process_completed" in line:
                return told
    return told


def test_an_upload_is_answered(url: str, media_folder: Path) -> None:
    path = upload(url, (media_folder / "square.png").read_bytes())
    assert "tokens" in ask(url, path)


@pytest.mark.parametrize("form", ["{0}", "/proc/self/cwd{0}", "file://{0}", "{1}/../{2}"])
def test_a_question_cannot_name_a_file_of_the_server(
    url: str, uploads: Path, secret: Path, form: str
) -> None:
    relative = os.path.relpath(secret, uploads.parent)
    told = ask(url, form.format(secret, uploads, relative))
    assert SECRET not in told
    completed = json.loads(told.rpartition("data: ")[2])
    assert completed["success"] is False
    stored = [file for file in uploads.rglob("*") if file.is_file()]
    assert not any(SECRET.encode() in file.read_bytes() for file in stored)


def test_a_question_cannot_name_an_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    async def fetch(address: str, cache_dir: str) -> str:
        fetched.append(address)
        return str(Path(cache_dir) / "fetched")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    told = ask(url, "https://example.com/a.png")
    assert not fetched
    assert json.loads(told.rpartition("data: ")[2])["success"] is False


@pytest.mark.parametrize(
    "route",
    [
        "/gradio_api/file={0}",
        "/gradio_api/file=..{0}",
        "/gradio_api/file={1}/..%2f..{0}",
        "/gradio_api/file=%2e%2e{0}",
        "/gradio_api/file=file://{0}",
        "/gradio_api/file/{0}",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/file=https://example.com/",
        "/gradio_api/proxy=https://example.com/",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{0}",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{0}",
        "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{0}",
        "/gradio_api/custom_component/x/client/component/..%2f..%2f..{0}",
        "/theme.css/..%2f..{0}",
    ],
)
def test_no_route_gives_files_of_the_server(
    url: str, uploads: Path, secret: Path, route: str
) -> None:
    reply = get(url + route.format(secret, uploads))
    assert reply.status_code in (400, 403, 404, 405)
    assert SECRET not in reply.text


def test_own_code_is_not_given_either(url: str) -> None:
    for file in ("pyproject.toml", "src/phi3v/cli.py", str(Path(__file__))):
        assert get(f"{url}/gradio_api/file={file}").status_code in (403, 404)


def test_uploads_have_a_largest_size(url: str) -> None:
    for size in ((1 << 20) + 10000, 3 << 20):
        files = {"files": ("a.png", b" " * size)}
        assert post(f"{url}/gradio_api/upload", files=files).status_code == 413


def test_pages_of_others_cannot_be_called_by_a_model(url: str) -> None:
    assert "default-src 'self'" in get(url).headers["content-security-policy"]


def test_a_password_stands_before_the_page(
    model: Any, processor: Phi3VProcessor, uploads: Path
) -> None:
    with serve_page(model, processor, uploads, password="open") as port:
        url = f"http://127.0.0.1:{port}"
        assert post(f"{url}/gradio_api/upload", files={"files": b"a"}).status_code == 401
        assert get(f"{url}/config").status_code == 401
        with httpx.Client(base_url=url, timeout=60) as client:
            form = {"username": "me", "password": "wrong"}
            assert client.post("/login", data=form).status_code == 400
            assert client.post("/login", data=form | {"password": "open"}).status_code == 200
            assert client.get("/config").status_code == 200
