"""``phi3v serve``: a page to talk to a model, and an OpenAI-compatible API beside it."""

import argparse
import asyncio
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from phi3v.inference.prefixes import MAX_KEPT_TOKENS
from phi3v.inference.terminal import note
from phi3v.model.flags import (
    add_compile_flag,
    add_flag,
    add_model_flags,
    check_compile_flag,
    check_model_flags,
    load_from_flags,
)
from phi3v.model.loading import load_processor
from phi3v.model.settings import GenerationSettings

KEY_VARIABLE = "PHI3V_API_KEY"
_AT_LEAST_ONE = (
    *("max_frames", "max_images", "max_image_pixels", "max_upload_mb", "max_batch_size"),
    *("max_batch_tokens", "max_waiting", "max_context"),
)


def build_parser() -> argparse.ArgumentParser:
    """Describe the flags; each may be written with hyphens or with underscores."""
    parser = argparse.ArgumentParser(
        prog="phi3v serve",
        description="Serve a page to talk to a model, and an OpenAI-compatible API at /v1.",
        epilog="Flags may be written with underscores, too (--model_path).",
        allow_abbrev=False,
    )
    add_model_flags(parser)
    web = parser.add_argument_group("the server")
    add_flag(web, "host", default="127.0.0.1",
             help="address to listen at; 0.0.0.0 opens it to a network (%(default)s)")  # fmt: skip
    add_flag(web, "port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    add_flag(web, "api-key", help="key that clients must send, and password of the page; better "
             f"set {KEY_VARIABLE}, which no list of processes shows")  # fmt: skip
    add_flag(web, "served-name", help="name of the model for clients; default: the folder's")
    add_flag(web, "no-page", action="store_true", help="serve the API alone")
    add_flag(web, "allow-urls", action="store_true",
             help="fetch pictures of API requests from web addresses, also those that only this "
             "machine can reach")  # fmt: skip
    add_compile_flag(web)
    answer = parser.add_argument_group("answers, where a request does not say")
    add_flag(answer, "max-new-tokens", type=int, default=500, help="most tokens (%(default)s)")
    add_flag(answer, "temperature", type=float, default=0.0,
             help="0 takes the likeliest token, above 0 it is drawn (%(default)s)")  # fmt: skip
    add_flag(answer, "top-p", type=float, default=1.0, help="draw from this share (%(default)s)")
    add_flag(answer, "repetition-penalty", type=float, default=1.0, help="(%(default)s)")
    bounds = parser.add_argument_group("bounds")
    add_flag(
        bounds, "max-frames", type=int, default=10, help="most frames of a video (%(default)s)"
    )
    add_flag(bounds, "max-images", type=int, default=32,
             help="most pictures and videos of a conversation (%(default)s)")  # fmt: skip
    add_flag(bounds, "max-image-pixels", type=int, default=50_000_000,
             help="larger pictures are refused by their header (%(default)s)")  # fmt: skip
    add_flag(bounds, "max-upload-mb", type=int, default=64,
             help="largest request in MiB (%(default)s)")  # fmt: skip
    add_flag(bounds, "max-context", type=int, default=32768,
             help="most tokens of a conversation with its answer (%(default)s)")  # fmt: skip
    add_flag(bounds, "max-batch-size", type=int, default=8,
             help="most answers at once (%(default)s)")  # fmt: skip
    add_flag(bounds, "max-batch-tokens", type=int, default=32768,
             help="most tokens of all answers at once, prompts included (%(default)s)")  # fmt: skip
    add_flag(bounds, "max-waiting", type=int, default=64,
             help="most requests in line; further ones are answered 429 (%(default)s)")  # fmt: skip
    add_flag(bounds, "max-kept-tokens", type=int, default=MAX_KEPT_TOKENS,
             help="most tokens of conversations whose keys and values are kept for the next turn; "
             "0 keeps none (%(default)s)")  # fmt: skip
    return parser


def main(argv: list[str]) -> int:
    """Run ``phi3v serve``."""
    arguments = build_parser().parse_args(argv)
    settings = _check(arguments)
    # Before Gradio is imported: nothing is sent anywhere, and uploads have a folder of their own.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="phi3v-serve-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        _serve(arguments, settings, Path(uploads))
    return 0


def _check(arguments: argparse.Namespace) -> GenerationSettings:
    check_model_flags(arguments)
    check_compile_flag(arguments)
    for name in _AT_LEAST_ONE:
        if getattr(arguments, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {getattr(arguments, name)}, expected at least 1")
    if arguments.max_kept_tokens < 0:
        raise ValueError(
            f"--max-kept-tokens is {arguments.max_kept_tokens}, expected 0, which keeps none, or "
            "more"
        )
    missing = [name for name in ("fastapi", "gradio", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"phi3v serve needs {', '.join(missing)}, not installed: pip install 'phi3v[serve]'"
        )
    return GenerationSettings(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
    )


def _serve(arguments: argparse.Namespace, settings: GenerationSettings, uploads: Path) -> None:
    from phi3v.inference.server import Server, open_socket

    # Everything a user can get wrong is looked at before the weights are read.
    with open_socket(arguments.host, arguments.port) as listener:
        processor = load_processor(arguments.model_path, arguments.num_crops, arguments.model_base)
        note(f"loading {arguments.model_path}")
        service = _make_service(arguments, load_from_flags(arguments), processor)
        app = _make_app(arguments, service, settings, uploads)
        server = Server(app, on_stop=service.scheduler.close)
        _announce(arguments, listener.getsockname()[1], service)
        asyncio.run(server.serve(sockets=[listener]))
    service.scheduler.join(timeout=10)
    note("stopped")


def _make_service(arguments: argparse.Namespace, model: Any, processor: Any) -> Any:
    from phi3v.inference.messages import MediaLimits
    from phi3v.inference.scheduling import Limits
    from phi3v.inference.service import Service, can_switch_off_adapter

    return Service(
        model,
        processor,
        arguments.served_name or Path(arguments.model_path).resolve().name,
        can_compare=can_switch_off_adapter(arguments.model_path),
        media=MediaLimits(
            max_uploads=arguments.max_images,
            max_image_pixels=arguments.max_image_pixels,
            max_num_frames=arguments.max_frames,
        ),
        limits=Limits(
            max_batch_size=arguments.max_batch_size,
            max_batch_tokens=arguments.max_batch_tokens,
            max_waiting=arguments.max_waiting,
            max_kept_tokens=arguments.max_kept_tokens,
            static_cache=arguments.compile,
        ),
        max_context=arguments.max_context,
    )


def _make_app(
    arguments: argparse.Namespace, service: Any, settings: GenerationSettings, uploads: Path
) -> Any:
    """Put API, page and guard together."""
    from fastapi import FastAPI

    from phi3v.inference.api import ApiSettings, add_api
    from phi3v.inference.guard import Bounds, Guard

    key = arguments.api_key or os.environ.get(KEY_VARIABLE) or None
    num_bytes = arguments.max_upload_mb << 20
    app = FastAPI(title="phi3v", docs_url=None, redoc_url=None, openapi_url=None)
    add_api(app, service, ApiSettings(arguments.allow_urls, num_bytes, settings))
    if not arguments.no_page:
        from phi3v.inference.app import mount_page

        mount_page(app, service, settings, uploads=uploads, max_bytes=num_bytes, password=key)
    return Guard(app, Bounds(num_bytes, 8 * num_bytes), key)


def _announce(arguments: argparse.Namespace, port: int, service: Any) -> None:
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    models = ", ".join(service.names)
    if not arguments.no_page:
        note(f"page    http://{host}:{port}")
    note(f"API     http://{host}:{port}/v1   (models: {models})")
    if arguments.host not in ("127.0.0.1", "localhost", "::1") and not (
        arguments.api_key or os.environ.get(KEY_VARIABLE)
    ):
        note(
            f"warning: everybody who reaches {host} may use it; set {KEY_VARIABLE} to ask for a key"
        )
    note("Ctrl-C stops")
