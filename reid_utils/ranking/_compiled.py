"""The decorator of the compiled loops; imported by their modules only, since numba takes a while to import."""

from functools import partial

from numba import njit


def compiled(function=None, **options):
    """numba's njit without the interpreter lock, cached on disk where the checkout or the home can be written."""
    if function is None:
        return partial(compiled, **options)
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return njit(nogil=True, **options)(function)  # compiled anew in every process
