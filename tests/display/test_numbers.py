"""Numbers in tables and pages."""

import math

from deconfound.display.numbers import mean_and_sd, number, signed


def test_numbers_keep_their_digits() -> None:
    assert number(0.12345, 3) == "0.123"
    assert number(0.0, 3) == "0.000"
    assert number(12.3456, 3) == "12.35"
    assert number(123456.7, 3) == "123457"
    assert number(1.234e-5, 3) == "1.2e-05"
    assert number(math.inf, 3) == "∞"


def test_a_mean_stands_with_its_sd_where_there_is_one() -> None:
    assert mean_and_sd(0.7123, 0.0309) == "0.712 ± 0.031"
    assert mean_and_sd(12.3456, 0.5, 2) == "12.3 ± 0.5"
    assert mean_and_sd(0.7123, math.nan) == "0.712"
    assert mean_and_sd(math.nan, math.nan) == "–"


def test_differences_have_a_sign_and_the_minus_of_mathematics() -> None:
    assert [signed(value) for value in (0.0834, -0.12, 0.0)] == ["+0.083", "−0.120", "+0.000"]
