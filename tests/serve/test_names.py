"""`retinue.serve`: cheap to import, every name there, functions not hidden by modules of their name."""

import subprocess
import sys

import pytest

from retinue import serve
from retinue.exceptions import UnsupportedError


def test_importing_serve_imports_nothing_heavy():
    code = (
        "import sys, retinue.serve; "
        "heavy = {'pydantic', 'fastapi', 'grpc', 'starlette', 'uvicorn', 'numpy'} & set(sys.modules); "
        "sys.exit(str(heavy or 0) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_modules_do_not_hide_functions():
    code = (
        "import retinue.serve.deployment, retinue.serve.ingress\n"
        "from retinue import serve\n"
        "assert callable(serve.deployment) and callable(serve.ingress)\n"
        "from retinue.serve.deployment import Deployment\n"
        "assert serve.Deployment is Deployment\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_absent_names_say_what_to_use():
    with pytest.raises(UnsupportedError, match=r"retinue\.get_actor"):
        _ = serve.get_deployment_actor
    assert not hasattr(serve, "llm")
    with pytest.raises(AttributeError, match="no attribute 'deploymnt'"):
        _ = serve.deploymnt


@pytest.mark.parametrize("name", serve.__all__)
def test_names_exist(name):
    assert getattr(serve, name) is not None
    assert name in dir(serve)
