"""Connecting the user's process to a cluster, its own or one that runs: `init` and `shutdown`.

Lives here: checking `init`'s arguments, finding or starting the cluster, registering, ending. Does not:
processes and folders (`cluster`, `launch`, `session`). It works from any thread and installs no signal
handler: what `init` started is in sessions of its own, so that Ctrl-C reaches only the user's code.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, Self

from retinue.core import current, session
from retinue.core.client.describe import process_queries
from retinue.core.client.runtime import Runtime
from retinue.core.cluster import LocalCluster, NodeOptions, start_local_cluster
from retinue.core.errors import NodeDiedError, RetinueError, RetinueSystemError, UnsupportedError
from retinue.core.log_output import LogPrinter
from retinue.core.node_watch import log_tail
from retinue.core.options import check_resources
from retinue.core.runtime_env import driver_env, validated
from retinue.core.transport import endpoints
from retinue.core.transport.threads import Connection
from retinue.core.wire.messages import (
    Address,
    FinishJob,
    Hello,
    JobInfo,
    LogLines,
    Query,
    RegisterJob,
    RegisterProcess,
    ShowLogs,
    SlabRecall,
)

logger = logging.getLogger(__name__)

ADDRESS_VARIABLE = "RETINUE_ADDRESS"
CONNECT_TIMEOUT_S = 30.0
LAST_LINES_TIMEOUT_S = 1.0
MIN_OBJECT_STORE_BYTES = 75 << 20  # as Ray's

_lock = threading.RLock()
_driver: Driver | None = None


class RetinueContext:
    """What `init` returns: facts about the cluster; as a context manager it shuts down at its end."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        runtime = driver.runtime
        head = driver.head
        self.address_info: dict[str, Any] = {
            "address": f"{head.host}:{head.port}" if head.port else head.path,
            "node_ip_address": runtime.node_ip,
            "session_dir": driver.session_dir,
            "node_id": runtime.node_id.hex(),
            "namespace": runtime.worker_env.namespace,
            "job_id": runtime.job_id.hex(),
            "webui_url": None,
        }
        self.dashboard_url: str | None = None

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def disconnect(self) -> None:
        """Leave the cluster; ends it if `init` had started it."""
        if _driver is self._driver:
            shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return f"RetinueContext({self.address_info})"


class Driver:
    """This process as a driver: its runtime, and the cluster if it is its own."""

    def __init__(
        self,
        *,
        head: Address,
        agent: Address,
        token: bytes,
        session_dir: str,
        cluster: LocalCluster | None,
        namespace: str,
        runtime_env: Mapping[str, Any] | None,
        log_to_driver: bool,
    ) -> None:
        self.head = head
        self.session_dir = session_dir
        self.cluster = cluster
        self._printer = LogPrinter() if log_to_driver else None
        worker_id = os.urandom(16)
        path = os.path.join(session_dir, f"d-{worker_id.hex()[:12]}.sock")
        listener = endpoints.listen_unix(path)
        listeners = [listener]
        host, port = "", 0
        if agent.port:  # several nodes: other nodes' workers ask this process about its objects
            tcp = endpoints.listen_tcp(agent.host)
            host, port = agent.host, tcp.getsockname()[1]
            listeners.append(tcp)
        address = Address(worker_id, agent.node_id, path, host, port)
        self._path = path
        runtime = self.runtime = Runtime(
            address=address, node_id=agent.node_id, job_id=b"\0" * 4, token=token, head=head
        )
        runtime.start()
        try:
            for sock in listeners:
                runtime.peers.listen(sock)
            self._register_job(namespace, runtime_env)
            self._register_process(agent)
        except BaseException:
            self._close_runtime()
            raise
        runtime.head.on_connected.append(self._head_is_back)
        runtime.ownership.queries.update(process_queries(runtime))

    def _register_job(self, namespace: str, runtime_env: Mapping[str, Any] | None) -> None:
        runtime = self.runtime
        checked = validated(runtime_env)
        job = JobInfo(
            job_id=b"",
            driver=runtime.address,
            pid=os.getpid(),
            entrypoint=" ".join(sys.argv),
            namespace=namespace,
            start_time=time.time(),
        )
        accepted, _ = runtime.head.call(RegisterJob(0, job), timeout_s=CONNECT_TIMEOUT_S)
        runtime.use_job(accepted.job_id, driver_env(accepted.job_id, namespace, checked))
        self._job = job

    def _head_is_back(self, connection: Connection) -> None:
        import msgspec

        job = msgspec.structs.replace(self._job, job_id=self.runtime.job_id)
        connection.request(RegisterJob(0, job), lambda response, body: None)

    def _register_process(self, agent: Address) -> None:
        runtime = self.runtime
        sock, _ = endpoints.connect(agent, agent.node_id, runtime.token)
        connection = Connection(runtime.io, sock, self._on_agent_message, self._agent_lost)
        runtime.agent = connection
        runtime.leases.use_agent(agent, connection)
        connection.send(Hello("agent", runtime.address, runtime.job_id))
        runtime.io.watch(connection, add=select.EPOLLIN)
        request = RegisterProcess(
            0,
            runtime.address,
            os.getpid(),
            "driver",
            runtime.job_id,
            0,
            runtime.worker_env,
            self._printer is not None,
        )
        registered, _ = connection.call(request, timeout_s=CONNECT_TIMEOUT_S)
        runtime.store.attach(registered.arena_path)
        runtime.node_labels = registered.labels
        runtime.node_ip = registered.node_ip
        runtime.listeners_path = registered.listeners_path
        runtime.session_dir = self.session_dir

    def _on_agent_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        runtime = self.runtime
        if runtime.leases.on_agent_message(connection, message, payload):
            return
        kind = type(message)
        if kind is LogLines:
            if self._printer is not None:
                self._printer.show(message.source, payload, is_stderr=message.is_stderr)
        elif kind is SlabRecall:
            runtime.store.recalled(message)
        elif kind is Query:
            runtime.ownership.on_query(connection, message, payload)
        else:
            handler = runtime.peers.handlers.get(kind)
            if handler is None:
                raise ConnectionError(f"unexpected {kind.__name__} from the agent")
            handler(connection, message, payload)

    def _agent_lost(self, connection: Connection) -> None:
        if not self.runtime.is_stopping:
            logger.error("the node agent is gone: tasks and objects of this node are lost")
            error = NodeDiedError("this process's node agent died")
            self.runtime.leases.agent_lost(error)
            self.runtime.fail_all(error)

    def _close_runtime(self) -> None:
        self.runtime.stop()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass  # the cluster removed its folder first

    def _show_last_lines(self) -> None:
        agent = self.runtime.agent
        if self._printer is None or agent is None or agent.is_closed:
            return
        try:
            agent.call(ShowLogs(0, self.runtime.job_id), timeout_s=LAST_LINES_TIMEOUT_S)
        except (OSError, RetinueError):
            pass  # an agent that is gone, or hangs: what it has not said is in its files, or lost with it

    def close(self) -> None:
        """Leave in order: what was printed is shown, the job is over, what is ours ends."""
        runtime = self.runtime
        self._show_last_lines()
        runtime.head.send(FinishJob(runtime.job_id))
        self._close_runtime()
        if self.cluster is not None:
            self.cluster.shutdown()


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    job_config: Any = None,
    configure_logging: bool = True,
    logging_level: int | str = logging.INFO,
    logging_format: str | None = None,
    logging_config: Any = None,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    enable_resource_isolation: bool = False,
    cgroup_path: str | None = None,
    system_reserved_cpu: float | None = None,
    system_reserved_memory: int | None = None,
    proxy_server_url: str | None = None,
    **kwargs: Any,
) -> RetinueContext:
    """Connect this process to a cluster.

    `address`: None takes RETINUE_ADDRESS, else this user's newest running cluster on this machine, else
    starts one that ends with this process. "auto" raises ConnectionError where there is none, "local"
    always starts one, "host:port" is a head's. `num_cpus`, `num_gpus`, `resources`, `labels` and
    `object_store_memory` (bytes, at least 75 MiB) describe the node that is started, and are errors where
    none is. `include_dashboard=True` says where to look at the cluster: there is no dashboard.

    Raises RuntimeError if this process is connected already (unless `ignore_reinit_error`),
    ConnectionError, and UnsupportedError for what Ray has and Retinue has not.
    """
    global _driver
    _check_platform()
    _refuse_unsupported(
        local_mode=local_mode,
        job_config=job_config,
        enable_resource_isolation=enable_resource_isolation,
        cgroup_path=cgroup_path,
        system_reserved_cpu=system_reserved_cpu,
        system_reserved_memory=system_reserved_memory,
        proxy_server_url=proxy_server_url,
    )
    for name in kwargs:
        if not name.startswith("_"):
            raise TypeError(f"init() has no argument {name!r}")
    with _lock:
        if _driver is not None or current.runtime_or_none() is not None:
            if ignore_reinit_error and _driver is not None:
                return RetinueContext(_driver)
            raise RuntimeError("this process is connected already; call retinue.shutdown() first")
        if configure_logging:
            _configure_logging(logging_level, logging_format, logging_config)
        validated(runtime_env)
        _check_node(resources, object_store_memory)
        node = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
        }
        found = None if address == "local" else _find(address)
        common = {
            "namespace": namespace or str(uuid.uuid4()),
            "runtime_env": runtime_env,
            "log_to_driver": log_to_driver is not False,
        }
        if found is not None:
            given = [name for name, value in node.items() if value is not None]
            if given:
                raise ValueError(
                    f"{', '.join(given)}: only for a cluster that init() starts, not one that runs"
                )
            _driver = _attach(found, common)
        else:
            _driver = _start(node, kwargs.get("_temp_dir"), common)
        current.set_runtime(_driver.runtime)
        _register_exit()
        if include_dashboard:
            _tell_where_to_look()
        return RetinueContext(_driver)


def _tell_where_to_look() -> None:
    logger.info(
        "there is no dashboard: `retinue status` and `retinue list` show this cluster; `retinue start --head`"
        " starts one with an admin server (state and metrics over HTTP) and says where it listens"
    )


def _check_platform() -> None:
    if sys.platform != "linux":
        raise RetinueSystemError(
            "Retinue's clusters run on Linux: they need memfd and the passing of descriptors"
        )


def _refuse_unsupported(**given: Any) -> None:
    reasons = {
        "local_mode": "debug with a debugger in the task's own process, or call the function itself",
        "job_config": "use runtime_env and namespace",
        "enable_resource_isolation": "run the node in a container or a systemd slice with limits",
        "cgroup_path": "run the node in a cgroup with limits",
        "system_reserved_cpu": "give the node fewer CPUs with num_cpus",
        "system_reserved_memory": "give the node a container with a limit",
        "proxy_server_url": "it concerns Ray's client, which is not needed",
    }
    for name, value in given.items():
        if value:
            raise UnsupportedError(f"init({name}=...) is not supported; {reasons[name]}")


def _check_node(resources: Mapping[str, float] | None, object_store_memory: int | None) -> None:
    if resources is not None:
        check_resources("resources", resources)
        if "object_store_memory" in resources:
            raise ValueError("resources cannot hold object_store_memory: use init(object_store_memory=...)")
    if object_store_memory is not None and object_store_memory < MIN_OBJECT_STORE_BYTES:
        raise ValueError(
            f"object_store_memory={object_store_memory} is less than {MIN_OBJECT_STORE_BYTES} bytes (75 MiB),"
            " with which a node could hardly work; leave it out for 30 % of the machine's memory"
        )


def _configure_logging(level: int | str, text_format: str | None, config: Any) -> None:
    root = logging.getLogger("retinue")
    if config is not None:
        config._apply()
        return
    root.setLevel(level)
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter(text_format or "%(asctime)s\t%(levelname)s %(name)s -- %(message)s")
        )
        root.addHandler(handler)
        root.propagate = False


def _find(address: str | None) -> session.ClusterFile | None:
    """The running cluster to join; None if one is to be started."""
    wanted = address or os.environ.get(ADDRESS_VARIABLE)
    if wanted == "local":
        return None
    if wanted in (None, "auto"):
        found = session.find_cluster()
        if found is None and wanted == "auto":
            raise ConnectionError(
                "no running cluster of this user was found here; start one with `retinue start --head`"
            )
        return found
    assert wanted is not None
    found = session.find_cluster_at(wanted)
    if found is None:
        raise ConnectionError(
            f"no cluster with a node on this machine has its head at {wanted!r}; start a node here with "
            f"`retinue start --address {wanted}`"
        )
    return found


def _attach(found: session.ClusterFile, common: dict[str, Any]) -> Driver:
    if found.agent is None:
        raise ConnectionError(
            "the cluster has no node on this machine; start one with `retinue start --address`"
        )
    return Driver(
        head=found.head,
        agent=found.agent,
        token=session.cluster_token(found),
        session_dir=found.session_dir,
        cluster=None,
        **common,
    )


def _start(node: dict[str, Any], temp_dir: str | None, common: dict[str, Any]) -> Driver:
    session.clean_stale(temp_dir)
    options = NodeOptions(
        num_cpus=_amount("num_cpus", node["num_cpus"]),
        num_gpus=_amount("num_gpus", node["num_gpus"]),
        resources=dict(node["resources"] or {}),
        labels=dict(node["labels"] or {}),
        object_store_memory=node["object_store_memory"],
    )
    cluster = start_local_cluster(options, temp_dir=temp_dir)
    return join(cluster, **common)


def join(cluster: LocalCluster, *, owns: bool = True, **common: Any) -> Driver:
    """Register this process with a cluster of its own."""
    try:
        return Driver(
            head=cluster.head_address,
            agent=cluster.agent_address,
            token=cluster.token,
            session_dir=cluster.session.dir,
            cluster=cluster if owns else None,
            **common,
        )
    except BaseException as error:
        agent = cluster.agents[0] if cluster.agents else None
        if isinstance(error, OSError) and agent is not None and agent.wait(1.0) is not None:
            error = RetinueSystemError(f"the node agent did not start{log_tail(agent.config.log_path)}")
        if owns:
            cluster.shutdown()
        raise error


def use(driver: Driver) -> RetinueContext:
    """Make a driver that was joined elsewhere (`cluster_utils`) this process's."""
    global _driver
    with _lock:
        _driver = driver
        current.set_runtime(driver.runtime)
        _register_exit()
    return RetinueContext(driver)


def _amount(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{name} is a number of at least 0, got {value!r}")
    return float(value)


def _register_exit() -> None:
    atexit.unregister(shutdown)
    atexit.register(shutdown)


def shutdown(wait_for_processes: bool = True, _exiting_interpreter: bool = False) -> None:
    """Leave the cluster; one that `init` started ends, with all in it. Nothing happens if not connected."""
    global _driver
    with _lock:
        driver, _driver = _driver, None
        if driver is None:
            return
        current.set_runtime(None)
        atexit.unregister(shutdown)
        if driver.runtime.is_alive():
            driver.close()


def is_initialized() -> bool:
    """Whether this process is connected: a driver after `init`, or a worker."""
    return current.runtime_or_none() is not None


def _auto_init() -> None:
    init()


current.set_auto_init(_auto_init)
