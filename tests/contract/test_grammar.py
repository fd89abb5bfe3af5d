"""The contract for targets that are drawn from a grammar."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.contract.agreement import agrees
from tests.contract.grammar import TARGETS

SEEDED = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def check(target):
    agrees(target.make, target.inputs, drawn=target.drawn, gauge=True)


@settings(max_examples=5, **SEEDED)
@given(target=TARGETS)
def test_drawn_targets_agree(target):
    check(target)


@pytest.mark.slow
@settings(max_examples=240, **SEEDED)
@given(target=TARGETS)
def test_many_drawn_targets_agree(target):
    check(target)
