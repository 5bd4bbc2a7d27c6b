"""The options: defaults, limits, and what the errors say."""

import json

import cloudpickle
import pytest
from pydantic import ValidationError

from retinue.serve.config import (
    AggregationFunction,
    AutoscalingConfig,
    AutoscalingContext,
    AutoscalingPolicy,
    BackpressureConfig,
    ControllerOptions,
    DeploymentConfig,
    HTTPOptions,
    LoggingConfig,
    ProxyLocation,
    RequestRouterConfig,
    TracingConfig,
    gRPCOptions,
)
from retinue.serve.models import explain


def errors_of(model, **options):
    with pytest.raises(ValidationError) as caught:
        model(**options)
    return "\n".join(explain(caught.value))


def test_defaults_are_ray_serves_but_for_the_documented_ones():
    config = DeploymentConfig()
    assert config.num_replicas == 1
    assert config.max_ongoing_requests == 5
    assert config.graceful_shutdown_timeout_s == 20
    assert config.graceful_shutdown_wait_loop_s == 2
    assert config.health_check_period_s == 10
    assert config.health_check_timeout_s == 30
    assert config.max_constructor_retry_count == 20
    assert config.rolling_update_percentage == 0.2
    # Ray Serve: -1 and 0.
    assert config.max_queued_requests == 1000
    assert config.max_surge_percent == 25
    assert config.max_queue_wait_s is None


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("num_replicas", -1, "greater than or equal to 0"),
        ("max_ongoing_requests", 0, "greater than 0"),
        ("max_ongoing_requests", None, "valid integer"),
        ("max_queued_requests", 0, "-1 (no limit) or at least 1, got 0"),
        ("max_queued_requests", -2, "-1 (no limit) or at least 1, got -2"),
        ("max_queued_requests", "3", "valid integer"),
        ("max_queue_wait_s", 0, "greater than 0"),
        ("graceful_shutdown_timeout_s", -1, "greater than or equal to 0"),
        ("graceful_shutdown_wait_loop_s", -1, "greater than or equal to 0"),
        ("health_check_period_s", 0, "greater than 0"),
        ("health_check_timeout_s", 0, "greater than 0"),
        ("max_constructor_retry_count", 0, "greater than 0"),
        ("rolling_update_percentage", 0, "greater than 0"),
        ("rolling_update_percentage", 1.1, "less than or equal to 1"),
        ("max_surge_percent", -1, "greater than or equal to 0"),
        ("max_surge_percent", 101, "less than or equal to 100"),
        ("max_replicas_per_node", 0, "greater than or equal to 1"),
        ("max_replicas_per_node", 101, "less than or equal to 100"),
        ("user_config", {"a": object()}, "what JSON can hold"),
        ("placement_group_bundles", [], "at least one bundle"),
        ("placement_group_bundles", [{"CPU": 1}, {}], "bundle 1 must ask for some resource"),
        ("placement_group_bundles", [{"CPU": 1, "GPU": -1}], "none below 0"),
        ("placement_group_strategy", "NEAR", "'PACK', 'SPREAD', 'STRICT_PACK' or 'STRICT_SPREAD'"),
        ("placement_group_strategy", "PACK", "needs placement_group_bundles"),
        ("placement_group_bundle_label_selector", [{}], "needs placement_group_bundles"),
        ("backpressure_config", {"status_code": 500}, "503 or 429"),
        ("backpressure_config", {"retry_after": 5}, "did you mean 'retry_after_s'?"),
        ("logging_config", {"log_level": "LOUD"}, "log_level is one of"),
        ("request_router_config", {"max_backoff_s": 0}, "greater than 0"),
        ("num_replica", 1, "did you mean 'num_replicas'?"),
        ("zzz", 1, "there are autoscaling_config"),
    ],
)
def test_a_wrong_option_is_named(option, value, says):
    text = errors_of(DeploymentConfig, **{option: value})
    assert option in text
    assert says in text


def test_options_that_exclude_each_other():
    bundles = [{"CPU": 1}, {"CPU": 1}, {"CPU": 1}]
    assert "exclude each other" in errors_of(
        DeploymentConfig, placement_group_bundles=bundles, max_replicas_per_node=2
    )
    assert "there are 2 for 3 bundles" in errors_of(
        DeploymentConfig, placement_group_bundles=bundles, placement_group_bundle_label_selector=[{}, {}]
    )
    assert "exclude each other" in errors_of(DeploymentConfig, num_replicas=2, autoscaling_config={})


def test_every_error_is_told_at_once():
    text = errors_of(DeploymentConfig, max_surge_percent=101, helth_check_period_s=1, max_ongoing_requests=0)
    assert len(text.splitlines()) == 3


def test_autoscaling_leaves_the_number_open():
    assert DeploymentConfig(autoscaling_config={"max_replicas": 3}).num_replicas is None
    assert DeploymentConfig(num_replicas=None).num_replicas == 1


def test_a_config_survives_json():
    config = DeploymentConfig(
        user_config={"a": [1, None, float("inf")]},
        autoscaling_config=AutoscalingConfig(
            policy=AutoscalingPolicy(policy_function=lambda context: (7, {}))
        ),
        request_router_config={"request_router_kwargs": {"k": 1}},
        logging_config={"encoding": "JSON"},
    )
    copy = DeploymentConfig.model_validate_json(config.model_dump_json())
    assert copy == config
    assert copy.user_config["a"][2] == float("inf")
    assert copy.autoscaling_config.policy.get_policy()(None) == (7, {})


class TestAutoscaling:
    def test_defaults(self):
        config = AutoscalingConfig()
        assert (config.min_replicas, config.max_replicas, config.initial_replicas) == (1, 1, None)
        assert config.target_ongoing_requests == config.get_target_ongoing_requests() == 2
        assert (config.upscale_delay_s, config.downscale_delay_s) == (30, 600)
        assert config.downscale_to_zero_delay_s is None
        assert config.look_back_period_s == 30
        assert config.aggregation_function is AggregationFunction.MEAN
        assert AutoscalingConfig.default().max_replicas == 100

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"min_replicas": 3}, "max_replicas (1) must be at least min_replicas (3)"),
            ({"max_replicas": 4, "initial_replicas": 5}, "between min_replicas (1) and max_replicas (4)"),
            ({"min_replicas": 2, "max_replicas": 4, "initial_replicas": 1}, "initial_replicas (1)"),
            ({"min_replicas": -1}, "greater than or equal to 0"),
            ({"max_replicas": 0}, "greater than 0"),
            ({"target_ongoing_requests": 0}, "greater than 0"),
            ({"look_back_period_s": 0}, "greater than 0"),
            ({"metrics_interval_s": 0}, "greater than 0"),
            ({"upscaling_factor": 0}, "greater than 0"),
            ({"downscaling_factor": -1}, "greater than 0"),
            ({"upscale_delay_s": -1}, "greater than or equal to 0"),
            ({"downscale_delay_s": -1}, "greater than or equal to 0"),
            ({"downscale_to_zero_delay_s": -1}, "greater than or equal to 0"),
            ({"aggregation_function": "median"}, "'mean', 'max' or 'min'"),
            ({"policy": {"policy_function": "nocolon"}}, "'package.module:attribute', got 'nocolon'"),
            ({"policy": {"policy_kwargs": {"a": object()}}}, "what JSON can hold"),
            ({"target_num_ongoing_requests": 1}, "did you mean 'target_ongoing_requests'?"),
        ],
    )
    def test_limits(self, options, says):
        assert says in errors_of(AutoscalingConfig, **options)

    def test_factors_fall_back_on_their_older_names(self):
        assert AutoscalingConfig().get_upscaling_factor() == 1
        assert AutoscalingConfig(smoothing_factor=0.5).get_downscaling_factor() == 0.5
        assert AutoscalingConfig(upscale_smoothing_factor=0.6).get_upscaling_factor() == 0.6
        assert AutoscalingConfig(upscaling_factor=0.7, smoothing_factor=0.5).get_upscaling_factor() == 0.7

    def test_aggregation_in_any_case(self):
        assert AutoscalingConfig(aggregation_function="MAX").aggregation_function is AggregationFunction.MAX

    def test_a_policy_class_is_made_with_its_arguments(self):
        class Policy:
            def __init__(self, n):
                self.n = n

            def __call__(self, context):
                return self.n, {}

        policy = AutoscalingPolicy(policy_function=Policy, policy_kwargs={"n": 4})
        assert policy.get_policy()(None) == (4, {})
        assert policy.get_policy() is policy.get_policy()
        assert not policy.is_default_policy_function()
        assert AutoscalingPolicy().is_default_policy_function()

    def test_an_imported_policy_is_embedded_where_it_can_be_imported(self, tmp_path, monkeypatch):
        (tmp_path / "their_policies.py").write_text("def policy(context):\n    return 3, {}\n")
        policy = AutoscalingPolicy(policy_function="their_policies:policy")
        with monkeypatch.context() as context:
            context.syspath_prepend(str(tmp_path))
            policy.embed()
            context.delitem(__import__("sys").modules, "their_policies")
        assert cloudpickle.loads(policy.definition)(None) == (3, {})

    def test_an_absent_policy_names_the_nearest(self):
        with pytest.raises(AttributeError, match="did you mean 'join'"):
            AutoscalingPolicy(policy_function="os.path:joim").embed()

    def test_the_context_reads_metrics_once_and_late(self):
        calls = []

        def total():
            calls.append(1)
            return 5

        context = AutoscalingContext(
            "id", "d", "a", 1, 1, [], total, lambda: 7, aggregated_metrics=lambda: {"m": {"r": 1.0}}
        )
        assert not calls
        assert (context.total_num_requests, context.total_num_requests) == (5, 5)
        assert len(calls) == 1
        assert context.total_running_requests == 0  # never negative
        assert context.aggregated_metrics == {"m": {"r": 1.0}}
        assert context.raw_metrics == {}
        assert context.policy_state == {}


class TestProxies:
    def test_http_defaults_listen_on_loopback(self):
        options = HTTPOptions()
        assert (options.host, options.port) == ("127.0.0.1", 8000)
        assert options.keep_alive_timeout_s == 90
        assert options.request_timeout_s is None

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"port": 70000}, "less than or equal to 65535"),
            ({"root_path": "x"}, "root_path begins with '/'"),
            ({"root_path": "/x/"}, "does not end with it"),
            ({"request_timeout_s": 0}, "greater than 0"),
            ({"ssl_keyfile": "k"}, "both ssl_keyfile and ssl_certfile"),
            ({"ssl_certfile": "c"}, "both ssl_keyfile and ssl_certfile"),
            ({"ssl_ca_certs": "c"}, "ssl_ca_certs needs"),
            ({"middlewares": [1]}, "add them to the ingress app"),
            ({"num_cpus": 1}, "take no CPU"),
            ({"max_body_bytes": 0}, "greater than 0"),
            ({"max_header_bytes": 0}, "greater than 0"),
            ({"location": "Somewhere"}, "'Disabled', 'HeadOnly' or 'EveryNode'"),
            ({"prt": 1}, "did you mean 'port'?"),
        ],
    )
    def test_http_limits(self, options, says):
        assert says in errors_of(HTTPOptions, **options)

    def test_no_host_is_no_server(self):
        assert HTTPOptions(host=None).location is ProxyLocation.Disabled
        assert HTTPOptions(location="NoServer").location is ProxyLocation.Disabled

    def test_http_options_survive_json(self):
        options = HTTPOptions(port=0, root_path="/x")
        assert HTTPOptions.model_validate_json(options.model_dump_json()) == options

    def test_grpc(self):
        assert gRPCOptions().port == 9000
        assert "got 'x'" in errors_of(gRPCOptions, grpc_servicer_functions=["x"])
        assert gRPCOptions(grpc_servicer_functions=["os.path:join"]).grpc_servicer_func_callable
        with pytest.raises(TypeError, match="no function"):
            _ = gRPCOptions(grpc_servicer_functions=["os:sep"]).grpc_servicer_func_callable

    def test_the_controller_takes_env_vars_only(self):
        assert ControllerOptions(runtime_env={"env_vars": {"A": "1"}}).runtime_env
        assert "env_vars only, got pip" in errors_of(ControllerOptions, runtime_env={"pip": []})
        assert "from name to string" in errors_of(ControllerOptions, runtime_env={"env_vars": {"A": 1}})


def test_logging():
    assert LoggingConfig(log_level=10).log_level == "DEBUG"
    assert LoggingConfig(log_level="WARNING").log_level == "WARNING"
    assert "log_level is one of" in errors_of(LoggingConfig, log_level=11)
    assert "'TEXT' or 'JSON', got 'XML'" in errors_of(LoggingConfig, encoding="XML")
    assert "no attribute 'nme'" in errors_of(LoggingConfig, additional_log_standard_attrs=["nme"])
    assert LoggingConfig(additional_log_standard_attrs=["name", "name"]).additional_log_standard_attrs == [
        "name"
    ]


def test_request_router():
    config = RequestRouterConfig()
    assert config.is_default_request_router()
    assert (config.initial_backoff_s, config.backoff_multiplier, config.max_backoff_s) == (0.025, 2, 0.5)
    assert "what JSON can hold" in errors_of(RequestRouterConfig, request_router_kwargs={"a": object()})

    class Mine:
        pass

    given = RequestRouterConfig(request_router_class=Mine)
    assert given.request_router_class.endswith("Mine")
    copy = RequestRouterConfig.model_validate_json(given.model_dump_json())
    assert copy.get_request_router_class().__name__ == "Mine"


def test_backpressure_and_tracing():
    assert BackpressureConfig().status_code == 503
    assert "finite" in errors_of(BackpressureConfig, retry_after_s=float("inf"))
    assert "less than or equal to 1" in errors_of(TracingConfig, sampling_ratio=2)


def test_errors_can_be_made_json():
    with pytest.raises(ValidationError) as caught:
        DeploymentConfig(num_replica=1)
    assert json.loads(caught.value.json())[0]["loc"] == ["num_replica"]
