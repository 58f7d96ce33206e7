"""Names of the array types that functions take and return, and what of their spread is rounding."""

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Numbers of rows."""
Codes = npt.NDArray[np.int64]
"""Codes of categories; −1 is missing."""
AnyCodes = npt.NDArray[np.integer[Any]]
AnyFloats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
"""One truth value for each row."""
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Images = npt.NDArray[Any]
"""Many images or profiles in their stored type."""
Pixels = npt.NDArray[Any]
"""One image or array in its stored type."""

ROUNDING = 1e-6
"""Values whose sd is no larger a share of their mean are one value, rounded: float32 keeps seven
digits. Nothing may be divided by such a spread."""
