import cv2
import numpy as np
import pytest

from reid_utils.data.images import decode, letterbox, load_images


def _write(path, colour, height=20, width=10):
    cv2.imwrite(str(path), np.full((height, width, 3), colour, np.uint8))


@pytest.mark.parametrize(("height", "width"), [(20, 10), (30, 10), (7, 50), (1, 1)])
def test_letterbox_keeps_the_aspect_ratio_and_pads_with_zeros(height, width):
    boxed = letterbox(np.full((height, width, 3), 255, np.uint8), 64, 32)
    rows, columns = np.flatnonzero(boxed.any(axis=(1, 2))), np.flatnonzero(boxed.any(axis=(0, 2)))
    inner_height, inner_width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert boxed.shape == (64, 32, 3)
    assert inner_height == 64 or inner_width == 32
    assert abs(inner_height * width - inner_width * height) <= max(height, width)
    assert abs(rows[0] - (63 - rows[-1])) <= 1 and abs(columns[0] - (31 - columns[-1])) <= 1


def test_letterbox_takes_the_exact_form_of_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (100, 40, 3), np.uint8)
    exact = cv2.resize(image, (26, 64), interpolation=cv2.INTER_LINEAR_EXACT)
    assert not np.array_equal(exact, cv2.resize(image, (26, 64), interpolation=cv2.INTER_LINEAR))
    assert np.array_equal(letterbox(image, 64, 32)[:, 3:29], exact)


def test_decoding_gives_rgb_and_names_a_broken_file(tmp_path):
    _write(tmp_path / "red.png", (0, 0, 255))
    assert decode(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]
    for content in (b"", b"GIF89a"):
        (tmp_path / "bad.jpeg").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.jpeg is not a JPEG, PNG, BMP or WebP file"):
            decode(tmp_path / "bad.jpeg")


def test_cache_is_used_again_until_data_or_size_change(tmp_path):
    _write(tmp_path / "a.png", (10, 20, 30))
    first = load_images(tmp_path, ["a.png"], 16, 8, tmp_path / "cache", "one")
    _write(tmp_path / "a.png", (90, 90, 90))
    assert np.array_equal(load_images(tmp_path, ["a.png"], 16, 8, tmp_path / "cache", "one"), first)
    assert load_images(tmp_path, ["a.png"], 16, 8, tmp_path / "cache", "two")[0, 8, 4].tolist() == [90, 90, 90]
    assert load_images(tmp_path, ["a.png"], 32, 8, tmp_path / "cache", "one").shape == (1, 32, 8, 3)


def test_a_broken_image_leaves_no_cache_behind(tmp_path):
    _write(tmp_path / "a.png", (10, 20, 30))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png is not a JPEG, PNG, BMP or WebP file"):
        load_images(tmp_path, ["a.png", "b.png"], 16, 8, tmp_path / "cache", "one")
    assert not list((tmp_path / "cache").glob("*.npy"))
