"""`serve run`: applications in the foreground.

Nothing waits for what it does not need: the cluster, the controller and the proxy start in a thread while the
user's modules are imported. Lives here: that order, and the end of it all. Does not: starting clusters.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from retinue.serve.cli.options import (
    add_to_path,
    address_option,
    app_dir_option,
    environment_options,
    is_config_file,
    problem,
    read_arguments,
    say,
)
from retinue.serve.cli.reload import Snapshot, snapshot

if TYPE_CHECKING:
    from retinue.serve.controller_client import BlockingControllerClient
    from retinue.serve.deploy_schema import ServeDeploySchema
    from retinue.serve.messages import ApplicationSpec

ADDRESS_VARIABLE = "RETINUE_ADDRESS"
# What is needed once the cluster is up: imported while it starts (0.05 s).
NEXT_MODULES = ("retinue.serve.api", "retinue.serve.controller.actor", "retinue.serve.cli.waiting")
INTERRUPTED = 128 + signal.SIGINT


@dataclass(slots=True)
class Options:
    """Serve's options; None: its defaults, or what it runs with."""

    http_options: Any = None
    grpc_options: Any = None
    proxy_location: Any = None
    logging_config: Any = None


@dataclass(slots=True)
class Wanted:
    """What `serve run` was asked for: an import path with its options, or a config file."""

    target: str
    app_dir: str
    name: str = "default"
    route_prefix: str = "/"
    arguments: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)

    @property
    def is_config(self) -> bool:
        return os.path.isfile(self.target)


# --- the cluster


class Cluster:
    """The cluster on which applications run: one that is there, or one of this command's own."""

    def __init__(self, address: str | None, options: Callable[[], Options]) -> None:
        self._address = address
        self._options = options
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._start, name="start-serve", daemon=True)
        self.is_own = False
        self.had_serve = False
        self.controller: Any = None

    def start(self) -> None:
        """Begin; `ready` returns when it is done."""
        self._thread.start()

    def ready(self) -> Any:
        """The controller's handle. Raises what starting raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.controller

    def _start(self) -> None:
        try:
            self._join()
            from retinue.serve.api import _find_controller
            from retinue.serve.controller.actor import start_controller
            from retinue.serve.ports import check_port_is_free

            self.had_serve = not self.is_own and _find_controller() is not None
            options = self._options()
            if not self.had_serve:
                check_port_is_free(options.http_options)
            self.controller = start_controller(
                options.http_options, options.grpc_options, options.proxy_location, options.logging_config
            )
        except BaseException as error:
            self._error = error

    def _join(self) -> None:
        import retinue

        address = self._address or os.environ.get(ADDRESS_VARIABLE) or "auto"
        try:
            retinue.init(address, namespace="serve")
            self.is_own = address == "local"
        except ConnectionError:
            if address != "auto" or self._address is not None:
                raise
            retinue.init("local", namespace="serve")
            self.is_own = True

    def end(self, names: list[str], client: BlockingControllerClient | None) -> None:
        """Shut down what this command started, in order: its applications, serve, the cluster."""
        import retinue
        from retinue.serve.cli.waiting import progress, wait_gone

        self._thread.join()
        try:
            if self.controller is None:
                return
            if self.had_serve and client is not None:
                client.delete(names)
                wait_gone(client, names)
            else:
                with progress("Shutting down"):
                    retinue.get(self.controller.shutdown.remote())
        except KeyboardInterrupt:
            if not self.is_own:
                say("Interrupted: applications may go on; `serve shutdown` ends them.")
        finally:
            retinue.shutdown()


# --- applications


def imported(wanted: Wanted) -> ApplicationSpec:
    """Import the application and build it. Raises ClickException; user code's traceback is printed."""
    from retinue.serve.build import build, import_application

    try:
        app = import_application(wanted.target, wanted.arguments)
        return build(
            app, name=wanted.name, route_prefix=wanted.route_prefix, runtime_env=wanted.runtime_env or None
        )
    except ModuleNotFoundError as error:
        module = wanted.target.partition(":")[0]
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            traceback.print_exc()
            raise click.ClickException(f"{wanted.target} cannot be imported: {error}") from error
        raise click.ClickException(
            f"there is no module {error.name!r} in {wanted.app_dir} (--app-dir) or among the packages"
        ) from error
    except Exception as error:
        if error.__traceback__ is not None and _is_in(wanted.app_dir, error):
            traceback.print_exc()
        raise click.ClickException(f"{wanted.target}: {problem(error)}") from error


def _is_in(folder: str, error: BaseException) -> bool:
    """Whether code of the folder took part in the error."""
    return any(
        os.path.abspath(frame.filename).startswith(os.path.join(folder, ""))
        for frame in traceback.extract_tb(error.__traceback__)
    )


def config_options(config: ServeDeploySchema) -> Options:
    return Options(
        config.http_options.to_options(),
        config.grpc_options.to_options(),
        config.proxy_location,
        config.logging_config,
    )


# --- the commands


@click.command(short_help="Run applications here, until Ctrl-C.")
@click.argument("config_or_import_path")
@click.argument("arguments", nargs=-1)
@environment_options
@app_dir_option
@address_option
@click.option("--blocking/--non-blocking", default=True, show_default=True, help="Stay until Ctrl-C.")
@click.option("--reload", "-r", is_flag=True, help="Deploy again whenever a file in --app-dir changes.")
@click.option(
    "--route-prefix", default=None, help="Where it is reached; / by default. A config file has its own."
)
@click.option("--name", default=None, help="The application's name. A config file has its own.")
@click.option("--http-host", default=None, help="Where proxies listen; 127.0.0.1 by default.")
@click.option(
    "--http-port", default=None, type=click.IntRange(0, 65535), help="8000 by default; 0: a free one."
)
def run(
    config_or_import_path: str,
    arguments: tuple[str, ...],
    runtime_env: dict[str, Any],
    app_dir: str,
    address: str | None,
    blocking: bool,
    reload: bool,
    route_prefix: str | None,
    name: str | None,
    http_host: str | None,
    http_port: int | None,
) -> None:
    """Run a config file's applications, or the one of an import path such as main:app, until Ctrl-C.

    A function that builds an application is given the key=value ARGUMENTS:

      serve run main:app model=/path/to/model size=2

    It uses RETINUE_ADDRESS or the newest cluster that you have started on this machine; if there is none, it
    starts one, which ends with it. With --address local it always does.
    """
    if reload and not blocking:
        raise click.UsageError("--reload stays until Ctrl-C: it does not go with --non-blocking")
    folder = add_to_path(app_dir)
    wanted = Wanted(
        config_or_import_path, folder, name or "default", route_prefix or "/", runtime_env=runtime_env
    )
    if is_config_file(config_or_import_path):
        from retinue.serve.cli.deploy import in_folder, refuse_beside_config
        from retinue.serve.schema_file import load_config

        refuse_beside_config(
            arguments=arguments,
            runtime_env=runtime_env,
            name=name,
            route_prefix=route_prefix,
            http_host=http_host,
            http_port=http_port is not None,
        )
        config = in_folder(load_config(config_or_import_path), app_dir)
        cluster = Cluster(address, lambda: config_options(config))
    else:
        wanted.arguments = read_arguments(arguments)
        cluster = Cluster(address, lambda: _http(http_host, http_port))
    if reload:
        sys.dont_write_bytecode = True  # compiled files are told apart by the second only
    with interrupted_by_sigterm():
        _run(cluster, wanted, is_blocking=blocking, is_reloading=reload)


def _http(host: str | None, port: int | None) -> Options:
    if host is None and port is None:
        return Options()
    from retinue.serve.proxy_options import HTTPOptions

    given: dict[str, Any] = {"host": host, "port": port}
    return Options(HTTPOptions(**{key: value for key, value in given.items() if value is not None}))


def _run(cluster: Cluster, wanted: Wanted, *, is_blocking: bool, is_reloading: bool) -> None:
    is_left_running = is_running = False
    names: list[str] = []
    client: BlockingControllerClient | None = None
    # Before anything is imported: what changes from now on has to be deployed anew.
    files = snapshot(wanted.app_dir) if is_reloading else {}
    try:
        cluster.start()
        spec = None if wanted.is_config else imported(wanted)
        for module in NEXT_MODULES:
            importlib.import_module(module)
        cluster.ready()
        if not is_blocking and cluster.is_own:
            raise click.UsageError(
                "--non-blocking needs a running cluster, one of its own would end with it; "
                "`retinue start --head` starts one"
            )
        from retinue.core.doors import admin
        from retinue.serve.cli.waiting import tell_where, wait_proxies, wait_running
        from retinue.serve.controller_client import BlockingControllerClient

        client = BlockingControllerClient(admin.find_cluster())
        names = deploy(cluster, client, wanted, spec)
        wait_running(client, names)
        wait_proxies(client)
        tell_where(client, names)
        is_left_running = not is_blocking
        if is_blocking:
            say("Press Ctrl-C to end.")
            is_running = True
            if is_reloading:
                redeploy(cluster, client, wanted, names, files)
            watch(client, names)
    except KeyboardInterrupt:
        if not is_running:
            raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        if is_left_running:
            import retinue

            retinue.shutdown()
        else:
            cluster.end(names, client)


def deploy(
    cluster: Cluster, client: BlockingControllerClient, wanted: Wanted, spec: ApplicationSpec | None
) -> list[str]:
    """Hand the applications to the controller; returns their names."""
    if spec is not None:
        import retinue
        from retinue.serve.messages import encode

        retinue.get(cluster.controller.deploy.remote([encode(spec)]))
        return [spec.name]
    from retinue.serve.cli.deploy import in_folder
    from retinue.serve.schema_file import load_config

    config = in_folder(load_config(wanted.target), wanted.app_dir)
    client.apply_config(config.model_dump_json(exclude_unset=True).encode())
    return [app.name for app in config.applications]


def watch(client: BlockingControllerClient, names: list[str]) -> None:
    """Tell what becomes of the applications; returns when they, or serve, were deleted by somebody else."""
    from retinue.serve.cli.reading import changes
    from retinue.serve.cli.waiting import read_status
    from retinue.serve.controller_client import ServeNotRunningError

    try:
        version, before = client.changed(-1), read_status(client)
        while True:
            version = client.changed(version)
            after = read_status(client)
            for line in changes(before, after, names):
                say(line)
            if not any(name in after.applications for name in names):
                return
            before = after
    except ServeNotRunningError:
        say("Serve was shut down.")


def redeploy(
    cluster: Cluster, client: BlockingControllerClient, wanted: Wanted, names: list[str], files: Snapshot
) -> None:
    """Deploy anew after each change of a file; where that fails the version before goes on. Never ends."""
    from retinue.serve.cli.reload import changed, forget_modules
    from retinue.serve.cli.waiting import wait_running

    for paths in changed(wanted.app_dir, files):
        say(f"Changed: {', '.join(os.path.relpath(path, wanted.app_dir) for path in paths)}")
        forget_modules(wanted.app_dir)
        try:
            spec = None if wanted.is_config else imported(wanted)
            names[:] = deploy(cluster, client, wanted, spec)
            wait_running(client, names)
        except (click.ClickException, ValueError, OSError, RuntimeError) as error:
            text = error.message if isinstance(error, click.ClickException) else problem(error)
            say(f"{text}\nThe version before goes on, as far as there is one.")
        else:
            say("Deployed anew.")


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM (a container's stop) ends the command as Ctrl-C does: in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells do so for `serve run ... &`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
