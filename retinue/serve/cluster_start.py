"""Starting serve on a cluster from outside of it: by a driver that joins it just for that.

Lives here: that. Does not: starting it from a driver that stays (`api.start`).
"""

from __future__ import annotations

import threading

import retinue
from retinue.core.doors.admin import AdminContext
from retinue.serve.config import HTTPOptions, LoggingConfig, ProxyLocation, gRPCOptions
from retinue.serve.deploy_schema import ServeDeploySchema
from retinue.serve.messages import NAMESPACE
from retinue.serve.ports import check_port_is_free

_one_at_a_time = threading.Lock()


def start_on(
    cluster: AdminContext,
    *,
    http_options: HTTPOptions | None = None,
    grpc_options: gRPCOptions | None = None,
    proxy_location: ProxyLocation | None = None,
    logging_config: LoggingConfig | None = None,
) -> None:
    """Start serve on the cluster, whose node has to be on this machine. Returns when the controller answers.

    Where it runs already its options stay. Raises ConnectionError, and RetinueError where it cannot start.
    """
    from retinue.serve.api import start

    check_port_is_free(http_options)
    with (
        _one_at_a_time,
        retinue.init(cluster.address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False),
    ):
        start(
            proxy_location=proxy_location,
            http_options=http_options,
            grpc_options=grpc_options,
            logging_config=logging_config,
        )


def start_for(cluster: AdminContext, config: ServeDeploySchema) -> None:
    """The same, with the options of a config file."""
    start_on(
        cluster,
        http_options=config.http_options.to_options(),
        grpc_options=config.grpc_options.to_options(),
        proxy_location=config.proxy_location,
        logging_config=config.logging_config,
    )
