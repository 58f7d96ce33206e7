"""The largest image that is read."""

from deconfound.errors import UserError

MAX_PIXELS = 2**26
"""Height × width × channels, with every plane of a stack, unless --max-pixels says otherwise."""


def refuse_huge(count: int, max_pixels: int, what: str = "pixels over all channels") -> None:
    """Raise UserError (without the file's name) if there are more than `max_pixels`."""
    if count > max_pixels:
        raise UserError(
            f"{count} {what}, more than {max_pixels}; crop the image, or raise --max-pixels if "
            "it is meant to be this large"
        )
