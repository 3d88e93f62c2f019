"""One made-up AWS for the tests of this folder: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from made_up_aws import Account, bootstrapped, made_up_aws


@pytest.fixture(scope="session")
def started_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    home = tmp_path_factory.mktemp("aws")
    with made_up_aws(home) as ec2:
        yield Account(ec2, bootstrapped(ec2), home / "ray_bootstrap_config.yaml")


@pytest.fixture
def account(started_account: Account) -> Account:
    """An AWS in which the cluster has a head and no worker."""
    started_account.only_a_head()
    return started_account
