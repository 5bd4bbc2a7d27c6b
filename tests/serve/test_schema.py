"""Config files and status: what is valid, and errors that name line, field and nearest name."""

import json

import pytest
from pydantic import ValidationError

from retinue.serve.config import DeploymentConfig, HTTPOptions
from retinue.serve.models import explain
from retinue.serve.schema import (
    ApplicationDetails,
    ApplicationStatus,
    DeploymentDetails,
    DeploymentSchema,
    DeploymentStatus,
    DeploymentStatusTrigger,
    DurationStats,
    HTTPOptionsSchema,
    ProxyDetails,
    ProxyStatus,
    ReplicaDetails,
    ReplicaState,
    ServeApplicationSchema,
    ServeDeploySchema,
    ServeInstanceDetails,
    json_schema,
)
from retinue.serve.schema_file import ConfigFileError, load_config, parse_config

APP = {"import_path": "m:app"}


def errors_of(model, **options):
    with pytest.raises(ValidationError) as caught:
        model(**options)
    return "\n".join(explain(caught.value))


def test_a_whole_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        """
proxy_location: HeadOnly
http_options: {host: 0.0.0.0, port: 8001, request_timeout_s: 3}
grpc_options: {port: 9001, grpc_servicer_functions: ["os.path:join"]}
logging_config: {log_level: DEBUG}
target_capacity: 50
applications:
  - name: one
    route_prefix: /one
    import_path: m.n:app
    runtime_env: {env_vars: {A: "1"}}
    args: {size: 3}
    deployments:
      - name: D
        num_replicas: auto
        actor_options: {num_cpus: 0.5}
        user_config: {a: [1, 2]}
  - name: two
    route_prefix: null
    import_path: m:build
"""
    )
    config = load_config(path)
    assert config.proxy_location == "HeadOnly"
    assert config.http_options.to_options() == HTTPOptions(host="0.0.0.0", port=8001, request_timeout_s=3)
    assert config.grpc_options.to_options().port == 9001
    assert [app.name for app in config.applications] == ["one", "two"]
    assert config.applications[0].deployment_names == ["D"]
    assert config.applications[0].deployments[0].overrides() == {
        "num_replicas": "auto",
        "ray_actor_options": {"num_cpus": 0.5},
        "user_config": {"a": [1, 2]},
    }
    assert ServeDeploySchema.model_validate_json(config.model_dump_json(exclude_unset=True)) == config


def test_defaults_listen_on_loopback():
    config = ServeDeploySchema(applications=[])
    assert config.http_options.host == "127.0.0.1"
    assert config.proxy_location == "EveryNode"
    assert HTTPOptionsSchema().to_options() == HTTPOptions()


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ({"import_path": "app"}, "'package.module:attribute'"),
        ({"import_path": "a:b:c"}, "'package.module:attribute'"),
        ({"import_path": ":b"}, "'package.module:attribute'"),
        ({**APP, "name": ""}, "cannot be empty"),
        ({**APP, "name": "a/b"}, "cannot contain"),
        ({**APP, "route_prefix": "x"}, "begins with '/'"),
        ({**APP, "route_prefix": "/x/"}, "does not end with '/'"),
        ({**APP, "route_prefix": "/{x}"}, "wildcards"),
        ({**APP, "host": "x"}, "set it in http_options"),
        ({**APP, "port": 1}, "set it in http_options"),
        ({**APP, "autoscaling_policy": {}}, "needs policy_function"),
        ({**APP, "autoscaling_policy": {"policy_function": "nocolon"}}, "'package.module:attribute'"),
        ({**APP, "runtime_env": {"pip": ["x"]}}, "runtime_env['pip'] is not supported"),
        ({**APP, "deployments": [{"name": "D"}, {"name": "D"}]}, "deployment 'D' is there more than once"),
        ({**APP, "import_pth": "x"}, "did you mean 'import_path'?"),
        (
            {**APP, "external_scaler_enabled": True, "deployments": [{"name": "D", "num_replicas": "auto"}]},
            "which is set for D",
        ),
        ({}, "import_path: this key is required"),
    ],
)
def test_applications(app, says):
    assert says in errors_of(ServeApplicationSchema, **app)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_replicas": 0}, "a number from 1, or 'auto', got 0"),
        ({"num_replicas": "many"}, "got 'many'"),
        ({"num_replicas": True}, "got True"),
        ({"num_replicas": 2, "autoscaling_config": {}}, "exclude each other"),
        ({"max_ongoing_requests": 0}, "greater than 0"),
        ({"max_queued_requests": 0}, "-1 (no limit)"),
        ({"max_surge_percent": 101}, "less than or equal to 100"),
        ({"gang_scheduling_config": {"gang_size": 2}}, "gang_scheduling_config is not supported"),
        ({"deployment_actors": []}, "deployment_actors is not supported"),
        ({"ray_actor_options": {"num_cpu": 1}}, "did you mean 'num_cpus'?"),
        ({"ray_actor_options": {"num_cpus": -1}}, "greater than or equal to 0"),
        ({"ray_actor_options": {"label_selector": {"a": "b"}}}, "label_selector"),
        ({"ray_actor_options": {}, "actor_options": {}}, "give one of them"),
        ({"placement_group_bundles": [{"CPU": 1}], "max_replicas_per_node": 1}, "exclude each other"),
        ({"user_confg": {}}, "did you mean 'user_config'?"),
    ],
)
def test_deployments(options, says):
    assert says in errors_of(DeploymentSchema, name="D", **options)


def test_part_of_the_placement_group_may_be_in_the_code():
    assert DeploymentSchema(name="D", placement_group_strategy="SPREAD").overrides()


@pytest.mark.parametrize(
    ("apps", "says"),
    [
        ([{**APP, "name": "a"}, {**APP, "name": "a", "route_prefix": "/b"}], "application 'a' is there"),
        ([{**APP, "name": "a"}, {**APP, "name": "b"}], "route_prefix '/' is there more than once"),
    ],
)
def test_applications_are_unique(apps, says):
    assert says in errors_of(ServeDeploySchema, applications=apps)


def test_applications_without_http_may_be_many():
    apps = [{**APP, "name": name, "route_prefix": None} for name in "ab"]
    assert len(ServeDeploySchema(applications=apps).applications) == 2


class TestFileErrors:
    def problems(self, text):
        with pytest.raises(ConfigFileError) as caught:
            parse_config(text, "c.yaml")
        return caught.value.problems

    def test_each_is_told_with_its_line(self):
        deployment, nearest = "applications[0].deployments[0]", "did you mean 'num_replicas'?"
        assert self.problems(
            "http_options:\n  prt: 1\napplications:\n- import_path: m:app\n  deployments:\n"
            "  - name: D\n    num_replica: 2\n    max_surge_percent: 200\n- name: b\n"
        ) == [
            "c.yaml:2: http_options.prt: unknown key 'prt' of HTTPOptionsSchema; did you mean 'port'?",
            f"c.yaml:7: {deployment}.num_replica: unknown key 'num_replica' of DeploymentSchema; {nearest}",
            f"c.yaml:8: {deployment}.max_surge_percent: input should be less than or equal to 100, got 200",
            "c.yaml:9: applications[1].import_path: this key is required",
        ]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a: [1\nb: 2", "c.yaml:2: "),
            ("\ta: 1", "c.yaml:1: "),
            (
                "applications: []\nhttp_options: {}\nhttp_options: {}",
                "c.yaml:3: the key 'http_options' is there twice",
            ),
            ("- 1", "has to hold keys such as 'applications', got [1]"),
            ("", "got None"),
            ("{}", "c.yaml:1: applications: this key is required"),
            ("applications: 3", "c.yaml:1: applications: input should be a valid list, got 3"),
            ("a: !!python/object:os.system {}", "c.yaml:1: could not determine a constructor"),
        ],
    )
    def test_what_is_no_config(self, text, says):
        (problem,) = self.problems(text)
        assert says in problem

    def test_an_absent_file(self, tmp_path):
        with pytest.raises(ConfigFileError, match="cannot be read"):
            load_config(tmp_path / "none.yaml")


def test_json_schema_is_for_editors():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["required"] == ["applications"]
    deployment = schema["$defs"]["DeploymentSchema"]
    assert deployment["additionalProperties"] is False
    assert deployment["properties"]["max_surge_percent"]["maximum"] == 100
    assert deployment["properties"]["max_surge_percent"]["description"]


def details():
    replicas = [
        ReplicaDetails(replica_id=f"a#D#{i}", state=state, start_time_s=1.0)
        for i, state in enumerate([ReplicaState.RUNNING, ReplicaState.RUNNING, ReplicaState.STARTING])
    ]
    deployment = DeploymentDetails(
        name="D",
        status=DeploymentStatus.UPSCALING,
        status_trigger=DeploymentStatusTrigger.AUTOSCALING,
        message="more load",
        deployment_config=DeploymentSchema.of(
            "D", DeploymentConfig(autoscaling_config={"max_replicas": 3}), {"num_cpus": 1}
        ),
        target_num_replicas=3,
        required_resources={"CPU": 1},
        replicas=replicas,
    )
    app = ApplicationDetails(
        name="a",
        route_prefix="/",
        docs_path=None,
        status=ApplicationStatus.RUNNING,
        message="",
        last_deployed_time_s=1.0,
        source="imperative",
        deployments={"D": deployment},
    )
    return ServeInstanceDetails(
        proxies={"n": ProxyDetails(status=ProxyStatus.HEALTHY)}, applications={"a": app}, target_capacity=50
    )


def test_details_in_short():
    status = details().to_status()
    assert status.proxies == {"n": "HEALTHY"}
    assert status.target_capacity == 50
    app = status.applications["a"]
    assert app.status == "RUNNING"
    deployment = app.deployments["D"]
    assert deployment.replica_states == {"RUNNING": 2, "STARTING": 1}
    assert (deployment.status_trigger, deployment.message) == ("AUTOSCALING", "more load")


def test_details_survive_json():
    told = details()
    assert ServeInstanceDetails.model_validate_json(told.model_dump_json()) == told


def test_the_status_has_no_pickled_code():
    config = DeploymentConfig(autoscaling_config={"policy": {"policy_function": lambda context: (1, {})}})
    shown = DeploymentSchema.of("D", config, {"num_cpus": 1, "max_restarts": 0}).model_dump_json()
    assert json.loads(shown)["autoscaling_config"]["policy"]["definition"] == ""
    assert json.loads(shown)["ray_actor_options"]["num_cpus"] == 1


def test_an_empty_instance_is_valid():
    assert ServeInstanceDetails(**ServeInstanceDetails.get_empty_schema_dict()).to_status().applications == {}
    assert ServeDeploySchema(**ServeDeploySchema.get_empty_schema_dict()).applications == []


def test_statuses_as_numbers():
    assert [s.to_numeric() for s in ProxyStatus] == [1, 2, 3, 4, 5]
    assert ApplicationStatus.RUNNING.to_numeric() == 6
    assert ApplicationStatus.DEPLOY_FAILED.to_numeric() == 1
    assert DeploymentStatus.HEALTHY.to_numeric() == 6


def test_duration_stats():
    assert DurationStats.from_values([]) == DurationStats()
    assert DurationStats.from_values([1, 3]) == DurationStats(mean=2, std=1, min=1, max=3)
