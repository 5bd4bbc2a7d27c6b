"""Bound graphs become specs: names, handles, overrides, versions, what replicas need."""

import json
import sys
import threading
from dataclasses import dataclass
from typing import Any

import cloudpickle
import msgspec
import pytest
from pydantic import BaseModel

from retinue import serve
from retinue.serve import build as builds
from retinue.serve import dependencies
from retinue.serve.build import build, import_application, resolve
from retinue.serve.config import LoggingConfig
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.handle import DeploymentHandle
from retinue.serve.messages import ApplicationSpec, decode, encode
from retinue.serve.schema import DeploymentSchema, ServeApplicationSchema


@serve.deployment
class Leaf:
    def __init__(self, value=None):
        self.value = value


@serve.deployment(num_replicas=2, user_config={"a": 1})
class Root:
    def __init__(self, *args, **kwargs):
        pass


@serve.deployment
def echo(request):
    return request


def arguments(spec, name):
    (deployment,) = [d for d in spec.deployments if d.name == name]
    return cloudpickle.loads(deployment.init_args)


def version(app, name=None, **options):
    spec = build(app, **options)
    return next(d.version for d in spec.deployments if d.name == (name or spec.ingress))


class TestGraph:
    def test_one_function(self):
        spec = build(echo.bind(), name="app", route_prefix="/x")
        assert (spec.name, spec.route_prefix, spec.ingress) == ("app", "/x", "echo")
        (deployment,) = spec.deployments
        assert deployment.is_function
        assert not deployment.is_asgi
        assert cloudpickle.loads(deployment.definition)(3) == 3
        assert json.loads(deployment.actor_options) == {"num_cpus": 1}

    def test_what_is_depended_on_comes_first(self):
        spec = build(Root.bind(Leaf.bind(), echo.bind()))
        assert [d.name for d in spec.deployments] == ["Leaf", "echo", "Root"]

    def test_the_same_application_is_one_deployment(self):
        leaf = Leaf.bind()
        spec = build(Root.bind(leaf, [leaf], Leaf.bind()))
        assert [d.name for d in spec.deployments] == ["Leaf", "Leaf_1", "Root"]

    def test_taken_names_are_passed_over(self):
        spec = build(Root.bind(Leaf.options(name="Leaf_1").bind(), Leaf.bind(), Leaf.bind()))
        assert [d.name for d in spec.deployments] == ["Leaf_1", "Leaf", "Leaf_2", "Root"]

    def test_handles_are_where_applications_were_however_deep(self):
        @dataclass
        class Box:
            content: Any

        leaf = Leaf.bind(1)
        spec = build(Root.bind(leaf, [leaf, {"k": (leaf,)}], box=Box(leaf)), name="app")
        args, kwargs = arguments(spec, "Root")
        for handle in (args[0], args[1][0], args[1][1]["k"][0], kwargs["box"].content):
            assert isinstance(handle, DeploymentHandle)
            assert (handle.deployment_name, handle.app_name) == ("Leaf", "app")
        assert arguments(spec, "Leaf") == ((1,), {})

    def test_chains(self):
        spec = build(Root.bind(Root.bind(Root.bind(Leaf.bind()))))
        assert [d.name for d in spec.deployments] == ["Leaf", "Root", "Root_1", "Root_2"]
        assert spec.ingress == "Root_2"

    def test_a_circle_is_refused(self):
        app = Root.bind([])
        app.args[0].append(app)
        with pytest.raises(ValueError, match="bound to itself"):
            build(app)

    def test_what_cannot_be_pickled_is_explained(self):
        with pytest.raises(
            RetinueServeException, match=r"the arguments of Root\.bind\(\) cannot be pickled.*lock"
        ):
            build(Root.bind(threading.Lock()))
        lock = threading.Lock()

        @serve.deployment
        class Holder:
            def __call__(self):
                return lock

        with pytest.raises(RetinueServeException, match="the code of deployment 'Holder' cannot be pickled"):
            build(Holder.bind())

    def test_only_the_ingress_may_be_an_asgi_app(self):
        class Web:
            __retinue_asgi__ = staticmethod(lambda: None)

        web = serve.deployment(Web)
        (deployment,) = build(web.bind()).deployments
        assert deployment.is_asgi
        with pytest.raises(RetinueServeException, match="only 'Root' is its ingress"):
            build(Root.bind(web.bind()))

    @pytest.mark.parametrize(
        "options", [{"name": "a/b"}, {"name": ""}, {"route_prefix": "x"}, {"route_prefix": "/x/"}]
    )
    def test_names_and_prefixes(self, options):
        with pytest.raises(ValueError, match=r"name|route_prefix"):
            build(echo.bind(), **options)

    def test_external_scaling_excludes_autoscaling(self):
        assert build(echo.bind(), external_scaler_enabled=True).external_scaler_enabled
        with pytest.raises(ValueError, match="excludes autoscaling, which echo has"):
            build(echo.options(num_replicas="auto").bind(), external_scaler_enabled=True)

    def test_a_spec_crosses_processes(self):
        spec = build(Root.bind(Leaf.bind()))
        assert decode(ApplicationSpec, encode(spec)) == spec


class TestOverrides:
    def test_the_file_goes_before_the_code(self):
        override = DeploymentSchema(name="Root", num_replicas=7, ray_actor_options={"num_cpus": 0.5})
        spec = build(Root.bind(Leaf.bind()), overrides=[override])
        root = json.loads(spec.deployments[-1].config)
        assert (root["num_replicas"], root["user_config"]) == (7, {"a": 1})
        assert json.loads(spec.deployments[-1].actor_options)["num_cpus"] == 0.5
        assert json.loads(spec.deployments[0].config)["num_replicas"] == 1

    def test_an_explicit_null_is_an_override(self):
        spec = build(Root.bind(), overrides=[DeploymentSchema(name="Root", user_config=None)])
        assert json.loads(spec.deployments[0].config)["user_config"] is None

    def test_autoscaling_replaces_the_number(self):
        override = DeploymentSchema(name="Root", autoscaling_config={"max_replicas": 3})
        config = json.loads(build(Root.bind(), overrides=[override]).deployments[0].config)
        assert config["num_replicas"] is None
        assert config["autoscaling_config"]["max_replicas"] == 3

    def test_an_unknown_deployment_names_the_nearest(self):
        with pytest.raises(ValueError, match="no deployment 'Rot'; did you mean 'Root'"):
            build(Root.bind(), overrides=[DeploymentSchema(name="Rot")])

    def test_logging_and_environment_of_the_application_fill_gaps(self):
        own = {"runtime_env": {"env_vars": {"A": "own"}}}
        app = Root.options(ray_actor_options=own).bind(
            Leaf.options(logging_config={"log_level": "ERROR"}).bind()
        )
        spec = build(
            app,
            logging_config=LoggingConfig(log_level="DEBUG"),
            runtime_env={"env_vars": {"A": "app", "B": "app"}, "preload": ["json"]},
        )
        leaf, root = spec.deployments
        assert json.loads(leaf.config)["logging_config"]["log_level"] == "ERROR"
        assert json.loads(root.config)["logging_config"]["log_level"] == "DEBUG"
        env = json.loads(root.actor_options)["runtime_env"]
        assert env == {"env_vars": {"A": "own", "B": "app"}, "preload": ["json"]}
        assert json.loads(leaf.actor_options)["runtime_env"]["env_vars"]["A"] == "app"


class TestVersion:
    def test_equal_declarations_have_equal_versions(self):
        assert version(Root.bind(1, a=2)) == version(Root.bind(1, a=2))

    @pytest.mark.parametrize(
        "options",
        [
            {"num_replicas": 5},
            {"user_config": {"b": 2}},
            {"autoscaling_config": {"max_replicas": 3}},
            {"max_ongoing_requests": 9},
            {"max_queued_requests": 9},
            {"max_queue_wait_s": 1.0},
            {"graceful_shutdown_timeout_s": 1},
            {"health_check_period_s": 1},
            {"logging_config": {"log_level": "DEBUG"}},
            {"max_surge_percent": 50},
            {"backpressure_config": {"status_code": 429}},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_what_replicas_can_take_on_is_no_new_version(self, options):
        assert version(Root.options(**options).bind(1)) == version(Root.bind(1))

    @pytest.mark.parametrize(
        "app",
        [
            Root.bind(2),
            Root.bind(1, a=1),
            Root.options(ray_actor_options={"num_cpus": 2}).bind(1),
            Root.options(ray_actor_options={"runtime_env": {"env_vars": {"A": "1"}}}).bind(1),
            Root.options(placement_group_bundles=[{"CPU": 1}]).bind(1),
            Root.options(Leaf.func_or_class, name="Root").bind(1),
            Root.bind(Leaf.bind()),
        ],
    )
    def test_what_they_cannot_is(self, app):
        assert version(app, "Root") != version(Root.bind(1))

    def test_code_that_goes_by_value_is_the_same_in_every_process(self):
        source = "class C:\n    def __call__(self):\n        return {value}\n"

        def made(value):
            names = {"__name__": "__main__"}
            exec(source.format(value=value), names)
            return version(serve.deployment(names["C"]).bind())

        assert made(1) == made(1)
        assert made(1) != made(2)

    def test_a_changed_source_file_is_a_new_version(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        helper = tmp_path / "their_helper.py"
        helper.write_text("X = 1\n")
        (tmp_path / "their_app.py").write_text(
            "import their_helper\nfrom retinue import serve\n"
            "@serve.deployment\nclass D:\n    def __call__(self):\n        return their_helper.X\n"
            "app = D.bind()\n"
        )
        try:
            app = import_application("their_app:app")
            before = version(app)
            assert version(app) == before
            helper.write_text("X = 2\n")
            assert version(app) != before
        finally:
            for name in ("their_app", "their_helper"):
                sys.modules.pop(name, None)


class TestDependencies:
    def test_installed_packages_of_the_code_are_preloaded(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "their_model.py").write_text("import numpy as np\nimport json\nimport pydantic\n")
        (tmp_path / "their_app2.py").write_text(
            "from retinue import serve\nimport their_model\n"
            "@serve.deployment\nclass D:\n    pass\napp = D.bind()\n"
        )
        try:
            (deployment,) = build(import_application("their_app2:app")).deployments
        finally:
            for name in ("their_app2", "their_model"):
                sys.modules.pop(name, None)
        assert "numpy" in deployment.preload
        tops = {name.partition(".")[0] for name in deployment.preload}
        assert not tops & {"json", "pydantic", "retinue", "their_model", "their_app2"}
        assert str(tmp_path) in deployment.sys_path

    def test_what_code_by_value_refers_to(self):
        import msgspec as used

        @serve.deployment
        class D:
            def __call__(self):
                return used.json

        assert "msgspec" in dependencies.referenced(cloudpickle.dumps(D.func_or_class))

    def test_folders_of_packages_and_the_interpreter_are_not_the_users(self):
        folders = dependencies.user_folders()
        assert not [folder for folder in folders if "site-packages" in folder]
        assert not [folder for folder in folders if folder.endswith("/lib-dynload")]
        assert dependencies.is_installed("msgspec")
        assert not dependencies.is_users("msgspec")
        assert not dependencies.is_users("json")
        assert not dependencies.is_users("retinue.serve.build")
        assert msgspec.__name__ == "msgspec"


class Arguments(BaseModel):
    size: int
    name: str = "x"


def typed(args: Arguments):
    return Root.bind(args.size, args.name)


def untyped(args):
    return Root.bind(args.get("size"))


def bare():
    return Root.bind()


class TestBuilders:
    def test_typed_arguments_are_checked_and_converted(self):
        assert resolve(typed, {"size": "3"}).args == (3, "x")

    def test_dicts_and_nothing(self):
        assert resolve(untyped, {"size": "3"}).args == ("3",)
        assert resolve(untyped).args == (None,)
        assert resolve(bare).args == ()

    @pytest.mark.parametrize(
        ("target", "args", "error", "says"),
        [
            (typed, {}, ValueError, "size: this key is required"),
            (typed, {"size": "big"}, ValueError, "size: input should be a valid integer"),
            (typed, {"size": 1, "nme": "y"}, ValueError, "no key 'nme'; did you mean 'name'?"),
            (bare, {"a": 1}, TypeError, "takes no arguments, got a"),
            (lambda a, b: None, {}, TypeError, "it takes 2"),
            (lambda args: Root, {}, TypeError, "return Root.bind()"),
            (lambda args: 3, {}, TypeError, "it returned 3"),
            (Root, {}, TypeError, "use Root.bind()"),
            (3, {}, TypeError, "is no application"),
            (Root.bind(), {"a": 1}, ValueError, "args are for builder functions"),
        ],
    )
    def test_mistakes(self, target, args, error, says):
        with pytest.raises(error) as caught:
            resolve(target, args)
        assert says in str(caught.value)

    def test_import_paths(self):
        here = f"{__name__}:typed"
        sys.modules.setdefault(__name__, sys.modules[typed.__module__])
        assert import_application(here, {"size": 1}).args == (1, "x")
        with pytest.raises(AttributeError, match="did you mean 'typed'"):
            import_application(f"{__name__}:typd")
        with pytest.raises(ModuleNotFoundError):
            import_application("no_such_module:app")
        with pytest.raises(ValueError, match=r"package\.module:attribute"):
            import_application("app")

    def test_from_a_config_file(self):
        sys.modules.setdefault(__name__, sys.modules[typed.__module__])
        config = ServeApplicationSchema(
            name="a",
            route_prefix="/a",
            import_path=f"{__name__}:typed",
            args={"size": 2},
            deployments=[{"name": "Root", "num_replicas": 4}],
            runtime_env={"env_vars": {"A": "1"}},
        )
        spec = builds.build_from_config(config)
        assert (spec.name, spec.route_prefix) == ("a", "/a")
        assert json.loads(spec.deployments[0].config)["num_replicas"] == 4
        assert json.loads(spec.deployments[0].actor_options)["runtime_env"]["env_vars"] == {"A": "1"}
        assert "logging_config" not in json.loads(spec.config)
        assert ServeApplicationSchema.model_validate_json(spec.config) == config
