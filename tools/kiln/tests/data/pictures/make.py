"""Makes the pictures of the tests of formats, and what Pillow reads from each.

    python3 make.py        (Pillow 12 or later)

`NAME.EXT` has `NAME.EXT.png` beside it: upright, with white behind it, as RGB.
"""

import pathlib
import struct

from PIL import Image, ImageOps

FOLDER = pathlib.Path(__file__).parent
WIDTH, HEIGHT = 40, 24


def source(alpha: bool) -> Image.Image:
    image = Image.new("RGBA", (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            color = (x * 6, y * 10, 255 - (x + y) * 3, x * 6 if alpha else 255)
            image.putpixel((x, y), color)
    return image if alpha else image.convert("RGB")


def save(name: str, image: Image.Image, orientation: int | None = None, **options: object) -> None:
    path = FOLDER / name
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)
    found = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    white = Image.new("RGBA", found.size, "white")
    Image.alpha_composite(white, found).convert("RGB").save(f"{path}.png")


def main() -> None:
    plain = source(False)
    save("baseline.jpg", plain, quality=95, subsampling=0)
    save("subsampled.jpg", plain, quality=95, subsampling=2)
    save("progressive.jpg", plain, quality=95, subsampling=2, progressive=True)
    save("grey.jpg", plain.convert("L"), quality=95)
    save("cmyk.jpg", plain.convert("CMYK"), quality=95)
    for orientation in (3, 6):
        save(f"turned-{orientation}.jpg", plain, orientation, quality=95, subsampling=0)
    save("lossy.webp", plain, quality=95)
    save("lossy-alpha.webp", source(True), quality=95)
    save("lossless.webp", plain, lossless=True)
    save("lossless-alpha.webp", source(True), lossless=True)
    save("turned-8.webp", plain, 8, lossless=True)
    save("animated.webp", plain, lossless=True, save_all=True, append_images=[plain.rotate(180)])
    # As AUTOMATIC1111's web UI writes it: big endian, an Exif directory with a UserComment alone.
    text = "a fox\nSteps: 5, Sampler: Euler, Seed: 7"
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    first = struct.pack(">2sHIHHHIII", b"MM", 42, 8, 1, 0x8769, 4, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, 0x9286, 7, len(comment), 44, 0)
    exif = b"Exif\0\0" + first + second + comment
    plain.save(FOLDER / "commented.jpg", exif=exif, quality=50)


if __name__ == "__main__":
    main()
