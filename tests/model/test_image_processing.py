"""The image processor against the published pixels, sizes and files."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.reference.image import padded_picture, published_pixels

from phi3v.model.image_processing import Phi3VImageProcessor


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _golden_case(golden: Path) -> dict[str, Any]:
    cases = json.loads((golden / "cases.json").read_text())["cases"]
    return next(case for case in cases if case["kind"] == "image_processor")


def _join(crops: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lay crops out as the padded picture (H, W, 3) again."""
    side = crops.shape[-1]
    tiles = crops.reshape(size[0] // side, size[1] // side, 3, side, side)
    return tiles.transpose(0, 3, 1, 4, 2).reshape(*size, 3)


def test_padded_pixels_have_the_published_hashes(golden: Path) -> None:
    wrong = []
    for item in _golden_case(golden)["items"]:
        processor = Phi3VImageProcessor(num_crops=item["num_crops"])
        path = golden / "images" / f"{item['image']}.png"
        if "error" in item:
            with pytest.raises(ValueError, match="too thin"):
                processor.prepare(path)
            continue
        crops, size = processor.prepare(path)
        digest = hashlib.sha256(_join(crops, size).tobytes()).hexdigest()
        if (digest, list(size)) != (item["hd_rgb_sha256"], item["image_size_hw"]):
            wrong.append(item["key"])
    assert not wrong


def test_published_pixels_equal_the_golden_samples(golden: Path) -> None:
    case = _golden_case(golden)
    tensors = load_file(golden / case["file"])
    on_global, on_crops = case["global_grid_index"], case["crops_grid_index"]
    for item in case["items"]:
        if "error" in item:
            continue
        key, used = item["key"], item["used_crops"]
        processor = Phi3VImageProcessor(num_crops=item["num_crops"])
        features = processor(golden / "images" / f"{item['image']}.png")
        pixels = features["pixel_values"]
        assert list(pixels.shape) == item["pixel_values_shape"], key
        assert features["num_img_tokens"] == [item["num_img_tokens"]], key
        sampled = pixels[0, 0][:, on_global][:, :, on_global]
        assert torch.equal(sampled, tensors[f"{key}/global_grid"]), key
        sampled = pixels[0, 1:used][:, :, on_crops][:, :, :, on_crops]
        assert torch.equal(sampled, tensors[f"{key}/crops_grid"]), key
        means = pixels[0, :used].double().mean(dim=(2, 3))
        torch.testing.assert_close(means, tensors[f"{key}/crop_mean"], atol=1e-6, rtol=0)
        assert not pixels[0, used:].any(), key
        if f"{key}/global_full" in tensors:
            assert torch.equal(pixels[0, 0], tensors[f"{key}/global_full"]), key


@pytest.mark.parametrize("crop_size", [28, 112])
def test_pixels_equal_plain_loops_on_random_sizes(crop_size: int) -> None:
    rng = random.Random(crop_size)
    for seed in range(12):
        picture = _noise(rng.randint(8, 300), rng.randint(8, 300), seed)
        num_crops = rng.randint(1, 16)
        processor = Phi3VImageProcessor(num_crops=num_crops, crop_size=crop_size)
        features = processor(picture)
        expected = published_pixels(picture, num_crops, crop_size)
        assert torch.equal(features["pixel_values"][0], expected)
        height, width = padded_picture(picture, num_crops, crop_size).shape[:2]
        assert features["image_sizes"].tolist() == [[height, width]]
        assert features["num_img_tokens"] == [processor.num_image_tokens(*picture.size)]


def test_compact_crops_are_the_published_ones_before_normalising() -> None:
    pictures = [_noise(200, 90), _noise(90, 200), _noise(60, 60)]
    processor = Phi3VImageProcessor(num_crops=5, crop_size=28)
    published = processor(pictures)
    compact = processor(pictures, pixel_format="compact")
    assert compact["pixel_values"].dtype == torch.uint8
    assert torch.equal(compact["image_sizes"], published["image_sizes"])
    mean = torch.tensor(processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_std).view(3, 1, 1)
    normal = (compact["pixel_values"].float() / 255 - mean) / std
    start = 0
    for image, (height, width) in enumerate(compact["image_sizes"].tolist()):
        count = height * width // 28**2
        expected = published["pixel_values"][image, 1 : count + 1]
        assert torch.equal(normal[start : start + count], expected)
        start += count
    assert start == len(normal)


def test_tall_picture_has_its_bars_left_and_right() -> None:
    crops, size = Phi3VImageProcessor(num_crops=1).prepare(Image.new("RGB", (100, 300)))
    padded = _join(crops, size)
    assert (padded[:, 0] == 255).all() and (padded[:, -1] == 255).all()
    assert (padded[0, 168] == 0).all() and (padded[-1, 168] == 0).all()


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_return_types(return_tensors: str | None) -> None:
    processor = Phi3VImageProcessor(num_crops=2, crop_size=28)
    features = processor([_noise(28, 28)] * 2, return_tensors=return_tensors)
    kinds = {"pt": torch.Tensor, "np": np.ndarray, None: list}
    assert type(features["image_sizes"]) is kinds[return_tensors]
    assert tuple(features["pixel_values"].shape) == (2, 3, 3, 28, 28)
    if return_tensors == "pt":
        assert features["image_sizes"].dtype == torch.int64


def test_path_array_and_tensor_equal_the_picture(tmp_path: Path) -> None:
    picture = _noise(50, 40)
    picture.save(tmp_path / "a.png")
    array = np.asarray(picture)
    processor = Phi3VImageProcessor(num_crops=4, crop_size=28)
    expected, size = processor.prepare(picture)
    forms: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]
    for form in forms:
        crops, found = processor.prepare(form)
        assert np.array_equal(crops, expected) and found == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "F"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode: str) -> None:
    base = _noise(40, 30).convert("L")
    picture = base.convert("I;16") if mode == "I;16" else base.convert("RGB").convert(mode)
    processor = Phi3VImageProcessor(num_crops=2, crop_size=28)
    assert np.array_equal(
        processor.prepare(picture)[0], processor.prepare(picture.convert("RGB"))[0]
    )


def test_orientation_tag_is_not_applied(tmp_path: Path) -> None:
    picture = _noise(60, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    processor = Phi3VImageProcessor(num_crops=4, crop_size=28)
    assert processor.prepare(tmp_path / "turned.png")[1] == processor.prepare(picture)[1]


@pytest.mark.parametrize("size", [(40, 30), (40, 30, 1), (1, 40, 30), (40, 30, 4), (40, 30, 2)])
def test_arrays_with_other_channels_are_pictures(size: tuple[int, ...]) -> None:
    processor = Phi3VImageProcessor(num_crops=1, crop_size=28)
    assert processor.prepare(np.zeros(size, dtype=np.uint8))[0].shape == (1, 3, 28, 28)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no.png does not exist"):
        Phi3VImageProcessor()(tmp_path / "no.png")


@pytest.mark.parametrize("content", [b"no picture at all", b""])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.png cannot be read"):
        Phi3VImageProcessor()(path)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    _noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match="cut.png cannot be read"):
        Phi3VImageProcessor()(path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "empty list"),
        ([[Image.new("RGB", (9, 9))]], "picture is a list, .* flat list"),
        (np.zeros((9, 9, 3)), "dtype float64, expected uint8"),
        (np.zeros((9, 9, 7), dtype=np.uint8), r"shape \(9, 9, 7\)"),
        (np.zeros((2, 9, 9, 3), dtype=np.uint8), r"shape \(2, 9, 9, 3\)"),
        (None, "picture is a NoneType"),
    ],
)
def test_bad_pictures_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phi3VImageProcessor()(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_crops": 0}, "num_crops is 0"),
        ({"num_crops": 17}, "num_crops is 17"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "differ from the published"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phi3VImageProcessor(**settings)


def test_bad_options_are_refused() -> None:
    processor = Phi3VImageProcessor()
    with pytest.raises(ValueError, match="pixel_format is 'small'"):
        processor(_noise(9, 9), pixel_format="small")
    with pytest.raises(ValueError, match="return_tensors is 'tf'"):
        processor(_noise(9, 9), return_tensors="tf")
    with pytest.raises(ValueError, match="mode L, expected RGB"):
        Phi3VImageProcessor(do_convert_rgb=False)(Image.new("L", (9, 9)))


@pytest.mark.parametrize("name", ["p3", "p35"])
def test_published_file_is_written_as_it_was_read(golden: Path, tmp_path: Path, name: str) -> None:
    folder = golden / "checkpoints" / name
    processor = Phi3VImageProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path)
    published = json.loads((folder / "preprocessor_config.json").read_text())
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {"do_convert_rgb": True, **published}
    assert Phi3VImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_num_crops_can_be_set_while_loading(golden: Path) -> None:
    folder = golden / "checkpoints" / "p35"
    assert Phi3VImageProcessor.from_pretrained(folder, num_crops=7).num_crops == 7


def test_other_crop_size_is_saved(tmp_path: Path) -> None:
    Phi3VImageProcessor(crop_size=112).save_pretrained(tmp_path)
    loaded = Phi3VImageProcessor.from_pretrained(tmp_path)
    assert (loaded.crop_size, loaded.patch_size) == (112, 14)
    assert Phi3VImageProcessor(1, crop_size=112).num_image_tokens(112, 112) == 41
