"""Compiled `%10.5f`, rounded exactly as printf rounds; imported by `submission` when first needed."""

import numpy as np
from numba import njit

LARGEST = 1e10  # below it value × 10⁵ and its rounding error are exact in float64
_SPLITTER = 134217729.0  # 2²⁷ + 1


@njit(cache=True, nogil=True)
def _rounded(value):
    """|value| × 10⁵ rounded to a whole number, exact ties to even, from the product's exact rounding error."""
    scale = 100000.0
    scaled = value * scale
    carried = _SPLITTER * value
    high = carried - (carried - value)
    error = (high * scale - scaled) + (value - high) * scale  # exact: 10⁵ has 17 bits, the halves 26
    whole = np.rint(scaled)
    rest = scaled - whole
    if rest == 0.5 and error > 0:
        whole += 1
    elif rest == -0.5 and error < 0:
        whole -= 1
    return np.int64(whole)


@njit(cache=True, nogil=True)
def format_row(row, buffer):
    """Write `,%10.5f` for each value of the row into the buffer; returns the number of bytes."""
    place = 0
    digits = np.empty(20, np.uint8)
    for raw in row:
        value = np.float64(raw)
        number = _rounded(abs(value))
        count = 0
        while number > 0 or count < 6:
            digits[count] = 48 + number % 10
            number //= 10
            count += 1
        negative = np.signbit(value)
        buffer[place] = 44
        place += 1
        for _ in range(10 - (count + 1 + negative)):
            buffer[place] = 32
            place += 1
        if negative:
            buffer[place] = 45
            place += 1
        for p in range(count - 1, -1, -1):
            buffer[place] = digits[p]
            place += 1
            if p == 5:
                buffer[place] = 46
                place += 1
    return place
