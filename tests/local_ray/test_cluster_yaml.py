"""cluster.yaml under Ray's own validator, and under the scheduler that decides which node type to add."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.utils import check_version_info, compute_version_info
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from safer_ray.cluster.session import other_version

REPOSITORY = Path(__file__).parents[2]
ROLES = ("sampler", "judge", "learner")


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    return dict(prepare_config(written))


def _nodes_added(config: dict[str, Any], demand: dict[str, Any], copies: int = 1) -> tuple[dict[str, int], int]:
    """Ask Ray which nodes it would add to a lone head for ``copies`` of a demand, and how many stay unmet."""
    types = config["available_node_types"]
    scorer = partial(
        _default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary(node_availabilities={})
    )
    added, unmet = get_nodes_for(types, {"head": 1}, "head", config["max_workers"], [demand] * copies, scorer)
    return dict(added), len(unmet)


def test_rays_own_validator_accepts_the_file(prepared: dict[str, Any]) -> None:
    assert validate_config(prepared) is None


def test_rays_validator_would_refuse_a_misspelt_key(prepared: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepared | {"max_worker": 3})


def test_there_are_four_node_types_each_with_limits_and_its_own_resource(written: dict[str, Any]) -> None:
    types = written["available_node_types"]
    assert set(types) == {"head", *ROLES}
    for name, node in types.items():
        assert 0 <= node["min_workers"] <= node["max_workers"]
        assert node["resources"][name] == 1
        assert not set(types) - {name} & set(node["resources"])
    assert written["max_workers"] >= sum(node["max_workers"] for node in types.values())


@pytest.mark.parametrize("role", ROLES)
def test_a_role_that_asks_for_its_resource_gets_nodes_of_its_type(prepared: dict[str, Any], role: str) -> None:
    assert _nodes_added(prepared, {"CPU": 1, role: 1}, copies=2) == ({role: 2}, 0)


def test_four_learner_ranks_share_one_node(prepared: dict[str, Any]) -> None:
    assert _nodes_added(prepared, {"CPU": 8, "GPU": 1, "learner": 0.25}, copies=4) == ({"learner": 1}, 0)


def test_no_more_nodes_of_a_type_are_added_than_its_limit(prepared: dict[str, Any]) -> None:
    most = prepared["available_node_types"]["judge"]["max_workers"]
    assert _nodes_added(prepared, {"judge": 1}, copies=most + 3) == ({"judge": most}, 3)


def test_every_node_shows_a_token_and_the_dashboard_stays_on_loopback(written: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in written[key] if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    [head] = [command for command in written["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "~/.ray/auth_token" in written["file_mounts"]


def test_nodes_install_what_the_project_pins(written: dict[str, Any]) -> None:
    requirements = REPOSITORY / written["file_mounts"]["~/safer_ray_requirements"]
    [install] = [command for command in written["setup_commands"] if "[cuda]" in command]
    assert "-c ~/safer_ray_requirements/cuda.txt" in install
    assert (requirements / "cuda.txt").is_file()
    assert (requirements / "cpu.lock").is_file()


def _demands(job: dict[str, Any]) -> dict[str, tuple[dict[str, float], int]]:
    """What the actors of each role ask for: {role: (one bundle, bundles placed together)}."""
    asked = {}
    for role in ROLES:
        section = job.get(role, {})
        resources = section.get("resources", {})
        bundle = {"CPU": resources.get("cpus", 1), "GPU": resources.get("gpus", 0), **resources.get("custom", {})}
        asked[role] = (bundle, section.get("tensor_parallel", 1) * section.get("ranks", 1))
    return asked


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("jobs/*.yaml")), ids=lambda path: path.stem)
def test_each_job_that_names_node_types_fits_on_them(prepared: dict[str, Any], path: Path) -> None:
    for role, (bundle, copies) in _demands(yaml.safe_load(path.read_text())).items():
        if not set(bundle) & set(ROLES):
            continue
        assert role in bundle, f"{path.name}: {role} asks for {bundle}, not for its own node type"
        added, unmet = _nodes_added(prepared, bundle, copies)
        assert set(added) == {role}
        assert unmet == 0


def test_a_cluster_with_another_ray_is_told_apart_from_one_that_does_not_answer() -> None:
    """The text is the one that Ray itself makes where a process joins a cluster of another version."""
    ours = compute_version_info()
    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.9.3", "python_version": ours[1]}, "node 10.0.0.4")
    assert other_version("10.0.0.4:6379", str(caught.value)) == (
        f"cluster 10.0.0.4:6379: it runs Ray 2.9.3 on Python {ours[1]}, "
        f"this process Ray {ours[0]} on Python {ours[1]}; install the same versions on both"
    )
    assert other_version("10.0.0.4:6379", "Failed to connect to GCS") == ""
