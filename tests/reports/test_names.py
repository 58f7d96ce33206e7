"""Names that tell the settings of a method apart in a report."""

from typing import Any

import pytest

from deconfound.reports.names import Names


def config(**options: Any) -> dict[str, Any]:
    return {"method": "scbd", "seed": 0, "options": options}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((0.00123456789012345, 0.0317), ("scbd (alpha 0.001235)", "scbd (alpha 0.0317)")),
        # alike in four digits, so all of them are written
        ((0.12345678, 0.12345679), ("scbd (alpha 0.12345678)", "scbd (alpha 0.12345679)")),
        ((100000000, 2), ("scbd (alpha 100000000)", "scbd (alpha 2)")),
        (("0.1 of plates", "all"), ("scbd (alpha 0.1 of plates)", "scbd (alpha all)")),
        ((1.0, 1.0), ("scbd", "scbd")),
    ],
)
def test_fractions_are_short_where_they_tell_settings_apart(
    values: tuple[Any, Any], names: tuple[str, str]
) -> None:
    configs = [config(alpha=value) for value in values]
    found = Names(configs)
    assert tuple(found.of(one) for one in configs) == names
