"""Good records of every spelling and good media of every format, and ways to spoil them."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from tests.data.clips import write_clip

MODES = ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "RGB")
ENDINGS = ("jpg", "png", "gif", "webp", "bmp", "tif")
JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, float("nan"), 10**40, "", " \n", "a", "\ud800", "a\0b", [], {}),
    *([[]], [None], {"a": 1}, {"type": "text"}, {"type": "image"}, ["a"], [["a", "b"]]),
    *("user", "assistant", "gpt", "human", "system", "tool", "<image>", "<video>", "<|image_1|>"),
    *("<|image_2|>", "<|image|>", "<|end|>", "<|user|>\n", "\u2028", "\U0001f600" * 3),
)
PATHS = (
    *("absent.png", "../outside.png", "link.png", "loop.png", "folder", ".", "..", "/etc/hostname"),
    *(
        "http://127.0.0.1:9/a.png",
        "ftp://a/b.png",
        "data:image/png;base64,AAAA",
        "a" * 300 + ".png",
    ),
    *("file:///etc/hostname", "~/a.png", "good.png\0", "strip.png", "good.txt", "clip.mp4"),
    *("GOOD.PNG", " good.png", "good.png ", "good.jpg", "\ud800.png", "empty.png", "audio.wav"),
)


def write_media(root: Path) -> Path:
    """Write an image folder with good media of all formats and modes, and odd ones."""
    folder = root / "images"
    (folder / "folder").mkdir(parents=True)
    noise = Image.effect_noise((90, 60), 60).convert("RGB")
    for ending in ENDINGS:
        noise.save(folder / f"good.{ending}")
    for mode in MODES:
        picture = Image.new("I;16", (40, 30), 77) if mode == "I;16" else noise.convert(mode)
        picture.save(folder / f"mode_{mode.replace(';', '')}.tif")
    noise.save(folder / "pages.tif", save_all=True, append_images=[noise])
    noise.save(folder / "moving.gif", save_all=True, append_images=[noise.rotate(90)])
    noise.save(folder / "progressive.jpg", progressive=True)
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    write_clip(folder / "clip.mp4", 12, 5, "mpeg4", "yuv420p")
    write_clip(folder / "clip.mkv", 5, 5)
    (folder / "empty.png").write_bytes(b"")
    (folder / "good.txt").write_text("not a picture")
    (folder / "audio.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    Image.new("RGB", (5000, 1)).save(folder / "strip.png")
    noise.save(root / "outside.png")
    (folder / "link.png").symlink_to(root / "outside.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return folder


def good_media(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the good pictures and of the good clips."""
    odd = {"empty.png", "good.txt", "audio.wav", "strip.png", "link.png", "loop.png"}
    names = sorted(one.name for one in folder.iterdir() if not one.is_dir() and one.name not in odd)
    clips = [name for name in names if name.startswith("clip")]
    return [name for name in names if name not in clips], clips


def good_record(number: int, pictures: list[str], clips: list[str], rng: random.Random) -> Any:
    """Make a record in a random spelling."""
    spelling = rng.choice(("llava", "messages", "parts", "pairs", "question"))
    media = [("image", rng.choice(pictures)) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    media += [("video", rng.choice(clips)) for _ in range(rng.choice((0, 0, 0, 1)))]
    if spelling in ("pairs", "question"):
        return short_record(number, spelling, media, rng)
    turns: list[dict[str, Any]] = []
    names = ("from", "value") if spelling == "llava" else ("role", "content")
    roles = ("human", "gpt") if spelling == "llava" else ("user", "assistant")
    if rng.random() < 0.3:
        turns.append({names[0]: "system", names[1]: "Be brief."})
    for pair in range(rng.randint(1, 3)):
        here = media if pair == 0 else []
        question: Any = "".join(f"<{kind}>\n" for kind, _ in here) + f"What is {number}?"
        if spelling == "parts" and rng.random() < 0.8:
            parts = [part(kind, path, rng) for kind, path in here]
            question = [*parts, {"type": "text", "text": f"What is {number}?"}]
        elif spelling == "parts":
            # Parts are the only place of media here.
            question, media = f"What is {number}?", media if pair else []
        turns.append({names[0]: roles[0], names[1]: question})
        turns.append({names[0]: roles[1], names[1]: rng.choice(("A bus.", "Yes", "é\n\nb"))})
    key = "conversations" if spelling == "llava" else "messages"
    record: dict[str, Any] = {"id": rng.choice((f"r{number}", number)), key: turns}
    if spelling != "parts":
        for kind in ("image", "video"):
            paths = [path for one, path in media if one == kind]
            if paths:
                record[kind] = paths[0] if len(paths) == 1 and rng.random() < 0.5 else paths
    return record


def short_record(
    number: int, spelling: str, media: list[tuple[str, str]], rng: random.Random
) -> Any:
    """Make a record of pairs, as in Microsoft's recipe, or of one question."""
    named = {
        key: [path for one, path in media if one == kind]
        for kind, key in (("image", "images"), ("video", "videos"))
        if any(one == kind for one, _ in media)
    }
    record: dict[str, Any] = {"id": f"r{number}"}
    if spelling == "question":
        question = {"question": f"What is {number}?", "answer": "A bus."}
        return record | question | named
    pairs: list[dict[str, Any]] = [
        {"user": f"What is {number}, {pair}?", "assistant": "A bus."}
        for pair in range(rng.randint(1, 3))
    ]
    if rng.random() < 0.5:
        return record | {"texts": pairs} | named
    rng.choice(pairs).update(named)
    return record | {"conversations": pairs}


def part(kind: str, path: str, rng: random.Random) -> dict[str, Any]:
    if kind == "image" and rng.random() < 0.5:
        return {"type": "image_url", "image_url": {"url": path}}
    return {"type": kind, kind: path}


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) pairs of a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found += [(value, key), *nodes(value[key])]
    return found


def replace_node(record: Any, rng: random.Random) -> None:
    container, key = rng.choice(nodes(record))
    container[key] = copy.deepcopy(rng.choice(JUNK))


def drop_node(record: Any, rng: random.Random) -> None:
    container, key = rng.choice(nodes(record))
    del container[key]


def rename_key(record: Any, rng: random.Random) -> None:
    container, key = rng.choice([one for one in nodes(record) if isinstance(one[0], dict)])
    names = ("from", "value", "role", "content", "image", "video", "messages", "conversations")
    names += ("images", "texts", "user", "assistant", "question", "answer", "answers", "x")
    container[rng.choice(names)] = container.pop(key)


def spoil_list(record: Any, rng: random.Random) -> None:
    lists = [c[k] for c, k in nodes(record) if isinstance(c[k], list) and c[k]]
    one = rng.choice(lists)
    place = rng.randrange(len(one))
    ways: tuple[Callable[[], Any], ...] = (
        lambda: one.insert(place, copy.deepcopy(one[place])),
        lambda: one.reverse(),
        lambda: one.insert(place, copy.deepcopy(rng.choice(JUNK))),
        lambda: one.clear(),
        lambda: one.pop(place),
    )
    rng.choice(ways)()


def spoil_text(record: Any, rng: random.Random) -> None:
    texts = [(c, k) for c, k in nodes(record) if isinstance(c[k], str)]
    container, key = rng.choice(texts)
    junk = rng.choice([one for one in JUNK if isinstance(one, str)])
    place = rng.randint(0, len(container[key]))
    container[key] = container[key][:place] + junk + container[key][place:]


def spoil_path(record: Any, rng: random.Random) -> None:
    endings = (".png", ".jpg", ".gif", ".webp", ".bmp", ".tif", ".mp4", ".mkv")
    paths = [(c, k) for c, k in nodes(record) if isinstance(c[k], str) and c[k].endswith(endings)]
    if paths:
        container, key = rng.choice(paths)
        container[key] = rng.choice(PATHS)
    else:
        replace_node(record, rng)


MUTATORS = (replace_node, drop_node, rename_key, spoil_list, spoil_text, spoil_path)


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Damage the content of a file."""
    place = rng.randrange(len(content))
    size = min(rng.choice((1, 1, 4, 64, 1000)), len(content) - place)
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: content[:place],
        lambda: content[:place] + rng.randbytes(size) + content[place + size :],
        lambda: content[:place] + bytes(size) + content[place + size :],
        lambda: content[:place] + content[place + size :],
        lambda: content[place:],
        lambda: content + rng.randbytes(size),
        lambda: b"",
    )
    return rng.choice(ways)()
