"""Compiled `%10.5f`, rounded exactly as printf rounds; imported by `submission` when first needed."""

import numpy as np
from numba import njit

LARGEST = 1e10  # below it value × 10⁵ and its rounding error are exact in float64
WIDEST = 18  # bytes that a value below LARGEST takes at most, its comma included
_SPLITTER = 134217729.0  # 2²⁷ + 1
_COMMA, _SPACE, _MINUS, _POINT, _ZERO = (np.uint8(ord(character)) for character in ", -.0")


@njit(cache=True, nogil=True)
def _rounded(value):
    """value × 10⁵ rounded to a whole number, exact ties to even, from the product's exact rounding error."""
    scale = 100000.0
    scaled = value * scale
    whole = np.rint(scaled)
    rest = scaled - whole
    if abs(rest) == 0.5:
        carried = _SPLITTER * value
        high = carried - (carried - value)
        error = (high * scale - scaled) + (value - high) * scale  # exact: 10⁵ has 17 bits, the halves 26
        if rest > 0 and error > 0:
            whole += 1
        elif rest < 0 and error < 0:
            whole -= 1
    return np.uint64(whole)


@njit(cache=True, nogil=True)
def _write_digits(number, place, first, buffer):
    """Write number / 10⁵ with its point, the last digit just before `place`, filled with zeros up to `first`."""
    for _ in range(5):
        place -= 1
        buffer[place] = _ZERO + np.uint8(number % 10)
        number //= 10
    place -= 1
    buffer[place] = _POINT
    while number > 0 or place == first:
        place -= 1
        buffer[place] = _ZERO + np.uint8(number % 10)
        number //= 10
    return place


@njit(cache=True, nogil=True)
def format_row(row, buffer, place):
    """Write `,%10.5f` for each value of the row into the buffer from `place` on; returns where it ends."""
    for raw in row:
        value = np.float64(raw)
        negative = np.signbit(value)
        number = _rounded(abs(value))
        width, limit = 10, np.uint64(100_000_000 if negative else 1_000_000_000)
        while number >= limit:
            width += 1
            limit *= np.uint64(10)
        buffer[place] = _COMMA
        end = place + 1 + width
        if number < np.uint64(4_000_000_000):
            start = _write_digits(np.uint32(number), end, end - 6, buffer)
        else:
            start = _write_digits(number, end, end - 6, buffer)
        if negative:
            start -= 1
            buffer[start] = _MINUS
        for fill in range(place + 1, start):
            buffer[fill] = _SPACE
        place = end
    return place
