"""Parameters of tests that only `make soak-short` runs: variations of cases that every run checks."""

from typing import Any

import pytest

_RARE = pytest.mark.soak_short


def rare(*values: Any, id: str | None = None) -> Any:  # noqa: A002 the name that pytest.param uses
    """Return the parameters of a case that only `make soak-short` runs."""
    return pytest.param(*values, marks=_RARE, id=id)


def rare_but(common: Any, values: Any) -> list[Any]:
    """Return `values` as parameters, those that `common` does not hold as rare ones."""
    return [value if value in common else rare(value) for value in values]
