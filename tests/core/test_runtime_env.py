from __future__ import annotations

import json
import os
import pickle
import sys
import types

import pytest

from retinue.core.errors import UnsupportedError
from retinue.core.runtime_env import RuntimeEnv, RuntimeEnvConfig, driver_env, extend, validated
from retinue.core.wire.messages import WorkerEnv


def test_good_fields_are_kept_as_plain_data(tmp_path):
    module = tmp_path / "tool.py"
    module.write_text("")
    env = RuntimeEnv(
        env_vars={"A": "1"},
        working_dir=tmp_path,
        py_modules=[str(module)],
        preload=("json",),
        py_executable="/usr/bin/python3",
        config=RuntimeEnvConfig(setup_timeout_seconds=5),
    )
    assert json.loads(json.dumps(env)) == env == env.to_dict()
    assert env.working_dir() == str(tmp_path)
    assert env.py_modules() == [str(module)]
    assert env["preload"] == ["json"]
    assert env.get("config", data_class=RuntimeEnvConfig).setup_timeout_seconds == 5
    assert env.get("nothing", 3) == 3
    again = pickle.loads(pickle.dumps(env))
    assert again == env
    assert type(again) is RuntimeEnv


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"env_vars": ["A"]}, TypeError, "env_vars"),
        ({"env_vars": {"A": 1}}, TypeError, "'A': 1"),
        ({"env_vars": {"A=B": "1"}}, ValueError, "A=B"),
        ({"env_vars": {"": "1"}}, ValueError, "env_vars"),
        ({"env_vars": {"A": "x\0y"}}, ValueError, "env_vars"),
        ({"working_dir": 3}, TypeError, "working_dir"),
        ({"working_dir": "/no/such/folder"}, ValueError, "/no/such/folder"),
        ({"working_dir": "s3://bucket/x.zip"}, UnsupportedError, "only local folders"),
        ({"py_modules": "/tmp"}, TypeError, "list"),
        ({"py_modules": ["/no/such/module"]}, ValueError, "does not exist"),
        ({"py_modules": ["https://x/y.zip"]}, UnsupportedError, "only local folders"),
        ({"py_modules": [3]}, TypeError, "py_modules"),
        ({"preload": "json"}, TypeError, "preload"),
        ({"preload": [json]}, TypeError, "preload"),
        ({"py_executable": 3}, TypeError, "py_executable"),
        ({"config": 3}, TypeError, "config"),
        ({"config": {"timeout": 3}}, ValueError, "setup_timeout_seconds"),
        ({"pip": ["numpy"]}, UnsupportedError, "pip.*py_executable"),
        ({"conda": "env"}, UnsupportedError, "conda"),
        ({"container": {"image": "x"}}, UnsupportedError, "container"),
        ({"enviroment": {}}, ValueError, "enviroment.*env_vars"),
    ],
)
def test_bad_field_is_refused_by_name(fields, error, text):
    with pytest.raises(error, match=text):
        validated(fields)


def test_refused_field_that_asks_for_nothing_is_accepted():
    assert validated({"pip": None, "conda": {}, "excludes": []}) == {}


def test_something_else_than_a_dict_is_refused():
    with pytest.raises(TypeError, match="RuntimeEnv"):
        validated(["env_vars"])  # type: ignore[arg-type]
    assert validated(None) == {}


def test_env_that_was_changed_after_it_was_made_is_checked_again():
    env = RuntimeEnv(env_vars={"A": "1"})
    env["env_vars"]["B"] = 2
    with pytest.raises(TypeError, match="'B': 2"):
        validated(env)


def test_wheel_is_refused_as_a_module(tmp_path):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"")
    with pytest.raises(UnsupportedError, match="neither a folder nor"):
        validated({"py_modules": [str(wheel)]})


def test_module_objects_stand_for_their_folders():
    assert validated({"py_modules": [json]}).py_modules() == [os.path.dirname(json.__file__)]
    with pytest.raises(ValueError, match="has no file"):
        validated({"py_modules": [types.ModuleType("made")]})


def test_drivers_environment_says_where_its_code_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/lib/x", "relative"])
    env = driver_env(b"job!", "space", RuntimeEnv())
    assert env.sys_path == [str(tmp_path), "/lib/x", str(tmp_path / "relative")]
    assert env.working_dir == str(tmp_path)
    assert (env.job_id, env.namespace) == (b"job!", "space")


def test_tasks_env_is_laid_over_the_jobs(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    base = extend(
        WorkerEnv(b"job!", sys_path=["/lib"], working_dir="/home"),
        validated({"env_vars": {"A": "1", "B": "1"}, "preload": ["json"]}),
    )
    env = extend(base, validated({"env_vars": {"B": "2"}, "py_modules": [str(package)]}))
    assert env.env_vars == {"A": "1", "B": "2"}
    assert env.sys_path == [str(tmp_path), "/lib"]
    assert env.working_dir == "/home"
    assert env.preload == ["json"]
    described = json.loads(env.runtime_env)
    assert described["env_vars"] == {"A": "1", "B": "2"}
    assert described["py_modules"] == [str(package)]


def test_empty_env_changes_nothing():
    base = WorkerEnv(b"job!")
    assert extend(base, RuntimeEnv()) is base
