"""Declaring: every option is checked where it is written, and errors say what to write instead."""

import cloudpickle
import pytest

import retinue
from retinue import serve
from retinue.exceptions import UnsupportedError
from retinue.serve.config import AutoscalingConfig, BackpressureConfig, LoggingConfig


@serve.deployment
class Model:
    def __init__(self, path, *, scale=1.0):
        pass


@serve.deployment
def function(request):
    return "x"


def test_plain_decorator_takes_name_and_defaults():
    assert Model.name == "Model"
    assert function.name == "function"
    assert Model.num_replicas == 1
    assert Model.max_ongoing_requests == 5
    assert Model.max_queued_requests == 1000
    assert Model.user_config is None
    assert Model.logging_config is None
    assert Model.version is None
    assert Model.ray_actor_options == Model.actor_options == {"num_cpus": 1}
    assert Model.func_or_class.__name__ == "Model"
    assert not Model.is_function
    assert function.is_function


def test_options_in_the_decorator():
    @serve.deployment(
        name="other",
        num_replicas=3,
        user_config={"a": 1},
        actor_options={"num_cpus": 0.5, "resources": {"x": 1}},
        backpressure_config={"status_code": 429},
        logging_config=LoggingConfig(log_level="DEBUG"),
    )
    class D:
        pass

    assert (D.name, D.num_replicas, D.user_config) == ("other", 3, {"a": 1})
    assert D.ray_actor_options == {"num_cpus": 0.5, "resources": {"x": 1}}
    assert D.backpressure_config == BackpressureConfig(status_code=429)
    assert D.logging_config["log_level"] == "DEBUG"


def test_options_changes_a_copy():
    changed = Model.options(num_replicas=4, user_config={"b": 2})
    assert (changed.num_replicas, changed.user_config) == (4, {"b": 2})
    assert changed.options(name="n").num_replicas == 4
    assert Model.num_replicas == 1
    assert Model.options(function.func_or_class).func_or_class is function.func_or_class


def test_the_latest_of_number_and_autoscaling_holds():
    scaled = Model.options(num_replicas=2).options(autoscaling_config={"max_replicas": 7})
    assert scaled.num_replicas is None
    assert scaled.config.autoscaling_config.max_replicas == 7
    assert scaled.options(num_replicas=2).config.autoscaling_config is None
    assert scaled.options(autoscaling_config=None).num_replicas == 1


def test_auto_is_one_to_a_hundred_unless_more_is_said():
    auto = Model.options(num_replicas="auto").config.autoscaling_config
    assert (auto.min_replicas, auto.max_replicas) == (1, 100)
    told = {"min_replicas": 2, "upscale_delay_s": 0}
    for given in (told, AutoscalingConfig(**told, max_replicas=2)):
        config = Model.options(num_replicas="auto", autoscaling_config=given).config.autoscaling_config
        assert config.min_replicas == 2
        assert config.upscale_delay_s == 0
    assert config.max_replicas == 2


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"num_replica": 1}, TypeError, "no option 'num_replica'; did you mean 'num_replicas'?"),
        ({"num_replicas": 0}, ValueError, "Model: num_replicas is a number from 1, or 'auto', got 0"),
        ({"num_replicas": "many"}, ValueError, "got 'many'"),
        ({"num_replicas": True}, ValueError, "got True"),
        ({"num_replicas": 2, "autoscaling_config": {}}, ValueError, "exclude each other"),
        ({"name": "a#b"}, ValueError, "cannot contain '#' or '/'"),
        ({"name": ""}, ValueError, "cannot be empty"),
        ({"name": 3}, TypeError, "is a string, got 3"),
        ({"version": "v1"}, ValueError, "version is not an option"),
        ({"max_ongoing_requests": None}, ValueError, "Model: max_ongoing_requests: "),
        ({"max_ongoing_requests": 0}, ValueError, "greater than 0, got 0"),
        ({"autoscaling_config": {"min_replica": 1}}, ValueError, "did you mean 'min_replicas'?"),
        ({"user_config": {1, 2}}, ValueError, "what JSON can hold"),
        ({"gang_scheduling_config": {"gang_size": 2}}, UnsupportedError, "placement_group_bundles"),
        ({"deployment_actors": []}, UnsupportedError, "named actor"),
        ({"ray_actor_options": 3}, TypeError, "ray_actor_options is a dict"),
        ({"ray_actor_options": {"num_cpu": 1}}, ValueError, "did you mean 'num_cpus'?"),
        ({"ray_actor_options": {"max_restarts": 1}}, ValueError, "cannot hold 'max_restarts'"),
        ({"ray_actor_options": {"num_cpus": -1}}, ValueError, "num_cpus"),
        ({"ray_actor_options": {"num_gpus": 1.5}}, ValueError, "num_gpus"),
        ({"ray_actor_options": {"label_selector": {"a": "b"}}}, UnsupportedError, "label_selector"),
        ({"ray_actor_options": {"runtime_env": {"pip": ["x"]}}}, UnsupportedError, "pip"),
        ({"ray_actor_options": {}, "actor_options": {}}, ValueError, "give one of them"),
        (
            {"ray_actor_options": {"num_cpus": 2}, "placement_group_bundles": [{"CPU": 1}]},
            ValueError,
            "which has CPU: 1.0, but ray_actor_options ask for 2",
        ),
        (
            {"ray_actor_options": {"resources": {"x": 1}}, "placement_group_bundles": [{"CPU": 1}]},
            ValueError,
            "which has x: 0",
        ),
        ({"placement_group_strategy": "PACK"}, ValueError, "needs placement_group_bundles"),
        (
            {"placement_group_bundles": [{"CPU": 1}], "max_replicas_per_node": 1},
            ValueError,
            "exclude each other",
        ),
    ],
)
def test_wrong_options(options, error, says):
    with pytest.raises(error) as caught:
        Model.options(**options)
    assert says in str(caught.value)


def test_none_leaves_out_what_is_not_supported():
    assert Model.options(gang_scheduling_config=None, deployment_actors=None, version=None).name == "Model"


def test_wrong_options_fail_on_the_decorators_line():
    with pytest.raises(ValueError, match="max_surge_percent"):
        serve.deployment(max_surge_percent=200)


def test_what_can_be_a_deployment():
    with pytest.raises(TypeError, match="goes on a class or function, got 3"):
        serve.deployment(3)
    with pytest.raises(TypeError, match="is a deployment already"):
        serve.deployment(Model)
    with pytest.raises(TypeError, match=r"without @retinue\.remote"):
        serve.deployment(retinue.remote(Model.func_or_class))

    class Callable:
        def __call__(self):
            return 1

    with pytest.raises(ValueError, match="has no name"):
        serve.deployment(Callable())
    assert serve.deployment(Callable(), name="c").is_function


def test_a_deployment_cannot_be_called():
    with pytest.raises(RuntimeError, match=r"serve\.run\(Model\.bind\(\)\)"):
        Model("x")


class TestBind:
    def test_keeps_the_arguments(self):
        app = Model.bind("p", scale=2)
        assert (app.deployment, app.args, app.kwargs) == (Model, ("p",), {"scale": 2})
        assert repr(app) == "Application(deployment='Model')"

    def test_arguments_must_fit_the_constructor(self):
        with pytest.raises(TypeError, match=r"Model\.bind\(\): missing a required argument: 'path'"):
            Model.bind()
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'scal'.*\(path, \*, scale=1\.0\)"):
            Model.bind("p", scal=2)

    def test_functions_take_none(self):
        assert function.bind().args == ()
        with pytest.raises(TypeError, match="takes no arguments"):
            function.bind(1)

    def test_an_unbound_deployment_is_a_mistake(self):
        with pytest.raises(TypeError, match=r"give it function\.bind\(\)"):
            Model.bind(function)


def test_ingress_classes_are_known_by_their_attribute():
    class Ingress:
        __retinue_asgi__ = staticmethod(lambda: None)

    assert serve.deployment(Ingress).is_asgi
    assert not Model.is_asgi


def test_logging_can_be_set_later():
    deployment = Model.options(name="logs")
    deployment.set_logging_config({"log_level": "ERROR"})
    assert deployment.logging_config["log_level"] == "ERROR"
    assert deployment.options(num_replicas=2).logging_config["log_level"] == "ERROR"


def test_deployments_can_be_pickled():
    copy = cloudpickle.loads(cloudpickle.dumps(Model.options(num_replicas=3)))
    assert (copy.name, copy.num_replicas) == ("Model", 3)
