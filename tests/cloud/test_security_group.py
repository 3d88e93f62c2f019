"""What `ray up` opens to the internet: nothing besides what our own security group allows."""

from __future__ import annotations

import copy

from made_up_aws import Account, cluster


def test_ray_opens_nothing_to_the_internet_besides_what_our_own_group_allows(account: Account) -> None:
    used = {
        group
        for node in account.config["available_node_types"].values()
        for group in node["node_config"]["SecurityGroupIds"]
    }
    groups = {g["GroupName"]: g for g in account.ec2.describe_security_groups()["SecurityGroups"]}
    assert set(groups) - {"by-name"} == {"default", "his2lip"}  # none of Ray's making
    assert used == {groups["his2lip"]["GroupId"]}
    assert groups["his2lip"]["IpPermissions"] == []


def test_without_a_group_of_our_own_ray_would_open_ssh_to_the_whole_internet(account: Account) -> None:
    """Why the group is named by its id: `provider.security_group` would not keep Ray from doing this."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    config = copy.deepcopy(cluster())
    for node in config["available_node_types"].values():
        del node["node_config"]["SecurityGroupIds"]
    config["provider"]["security_group"] = {"GroupName": "by-name"}
    bootstrap_aws(prepare_config(config))
    by_name = [{"Name": "group-name", "Values": ["by-name"]}]
    found = account.ec2.describe_security_groups(Filters=by_name)["SecurityGroups"]
    ranges = [r["CidrIp"] for p in found[0]["IpPermissions"] for r in p["IpRanges"]]
    assert ranges == ["0.0.0.0/0"]
