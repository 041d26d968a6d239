"""A folder in the Reason50K layout made of real photographs in every kind of file."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

INSTRUCTIONS = (
    "What would happen if the lights went out?",
    "Suppose it snowed over night.",
    "Imagine this place after a hundred years.",
    "What if the wind stopped?",
    "What if the coffee were left standing for a week?",
)


def pictures() -> dict[str, Image.Image]:
    """File name -> picture; the suffix, mode and EXIF are part of the point."""
    astronaut, coffee, camera = data.astronaut(), data.coffee(), data.camera()
    china = load_sample_images().images[0]
    alpha = np.dstack([astronaut, np.linspace(0, 255, astronaut.size // 3).reshape(512, 512)])
    return {
        "rotated.jpg": Image.fromarray(coffee),
        "cmyk.jpg": Image.fromarray(china).convert("CMYK"),
        "grey.png": Image.fromarray(camera[:300]),
        "deep.png": Image.fromarray(camera.astype(np.uint16) * 257),
        "alpha.png": Image.fromarray(alpha.astype(np.uint8), "RGBA"),
    }


def save(folder: Path) -> list[Path]:
    """The pictures as files; ``rotated.jpg`` is stored lying and turned by its EXIF."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        options = {}
        if name == "rotated.jpg":
            picture = picture.transpose(Image.Transpose.ROTATE_90)
            exif = Image.Exif()
            exif[0x0112] = 6  # turn by 270 degrees to see it upright
            options["exif"] = exif
        picture.save(folder / name, **options)
    return [folder / name for name in pictures()]


def dataset(folder: Path) -> Path:
    """One split, ``train``: each picture edited into another of another size and kind."""
    files = save(folder / "images")
    lines = []
    for index, (source, instruction) in enumerate(zip(files, INSTRUCTIONS, strict=True)):
        target = files[(index + 1) % len(files)]
        line = {
            "id": str(index),
            "category": ("physical", "temporal", "causal", "story")[index % 4],
            "src_image": f"images/{source.name}",
            "tgt_image": f"images/{target.name}",
            "instruction": instruction,
        }
        lines.append(json.dumps(line))
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
