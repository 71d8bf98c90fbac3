"""The published image processor as plain loops: slow, and easy to check."""

import math

import numpy as np
import torch
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def padded_picture(image: Image.Image, num_crops: int, crop_size: int = 336) -> np.ndarray:
    """Resize and pad one picture: uint8 (H, W, 3)."""
    image = image.convert("RGB")
    tall = image.width < image.height
    if tall:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    ratio = image.width / image.height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    scale -= 1
    new_width = crop_size * scale
    new_height = int(new_width / ratio)
    pixels = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR))
    target = math.ceil(new_height / crop_size) * crop_size
    top = int((target - new_height) / 2)
    padded = np.full((target, new_width, 3), 255, dtype=np.uint8)
    for row in range(new_height):
        padded[top + row] = pixels[row]
    return np.ascontiguousarray(padded.transpose(1, 0, 2)) if tall else padded


def published_pixels(image: Image.Image, num_crops: int, crop_size: int = 336) -> torch.Tensor:
    """Make the published model input of one picture: float32 (num_crops + 1, 3, S, S)."""
    padded = padded_picture(image, num_crops, crop_size)
    normal = torch.empty(3, padded.shape[0], padded.shape[1])
    for channel in range(3):
        plane = torch.from_numpy(padded[:, :, channel].copy()).to(torch.float32) / 255
        normal[channel] = (plane - torch.tensor(MEAN[channel])) / torch.tensor(STD[channel])
    side = (crop_size, crop_size)
    crops = [torch.nn.functional.interpolate(normal[None], side, mode="bicubic")[0]]
    for top in range(0, padded.shape[0], crop_size):
        for left in range(0, padded.shape[1], crop_size):
            crops.append(normal[:, top : top + crop_size, left : left + crop_size])
    while len(crops) < num_crops + 1:
        crops.append(torch.zeros(3, crop_size, crop_size))
    return torch.stack(crops)


def image_token_count(padded_height: int, padded_width: int, crop_size: int = 336) -> int:
    """Count the tokens of one picture row by row of its features; patches are 14 pixels."""
    side = crop_size // 14 // 2
    total = 0
    for _row in range(padded_height // crop_size * side):
        total += padded_width // crop_size * side + 1
    total += 1
    for _row in range(side):
        total += side + 1
    return total
