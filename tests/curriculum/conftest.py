"""The DeepSpeed oracle, started once."""

from collections.abc import Iterator

import pytest
from sampler_oracle import Oracle


@pytest.fixture(scope="session")
def deepspeed() -> Iterator[Oracle]:
    oracle = Oracle()
    yield oracle
    oracle.close()
