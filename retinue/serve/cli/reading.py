"""What the status says, in few words: whether applications run, why not, where they are reached. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retinue.serve.status_schema import (
    ApplicationDetails,
    ApplicationStatus,
    DeploymentDetails,
    DeploymentStatus,
    ServeInstanceDetails,
    ServeStatus,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of applications that were deployed. `waiting`: what each that is not there yet waits for."""

    running: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    waiting: Mapping[str, str] = ()  # type: ignore[assignment]

    @property
    def is_settled(self) -> bool:
        return not self.waiting


def outcome(status: ServeStatus, names: Iterable[str]) -> Outcome:
    """Where these applications are on their way to RUNNING."""
    running, failed, gone = [], [], []
    waiting: dict[str, str] = {}
    for name in names:
        app = status.applications.get(name)
        if app is None or app.status is ApplicationStatus.DELETING:
            gone.append(name)
        elif app.status is ApplicationStatus.RUNNING:
            running.append(name)
        elif app.status is ApplicationStatus.DEPLOY_FAILED:
            failed.append(name)
        else:
            waiting[name] = app.message or _unready(app.deployments)
    return Outcome(tuple(running), tuple(failed), tuple(gone), waiting)


def _unready(deployments: Mapping[str, Any]) -> str:
    names = [name for name, d in deployments.items() if d.status is not DeploymentStatus.HEALTHY]
    return f"deployments that are not ready: {', '.join(names)}" if names else "it is being deployed"


def failure(name: str, app: ApplicationDetails | None) -> str:
    """Why an application does not run: its message, and what the replicas that failed last have said."""
    if app is None:
        return f"application {name!r} is gone: it was deleted meanwhile"
    lines = [f"application {name!r} is {app.status}: {app.message or 'no reason is known'}"]
    for deployment in app.deployments.values():
        if deployment.status in (DeploymentStatus.DEPLOY_FAILED, DeploymentStatus.UNHEALTHY):
            lines += _of_deployment(deployment, app.message)
    return "\n".join(lines)


def _of_deployment(deployment: DeploymentDetails, told: str) -> list[str]:
    lines = []
    if deployment.message and deployment.message not in told:
        lines.append(f"deployment {deployment.name}: {deployment.message}")
    dead = deployment.recent_dead_replicas[-1:]
    if dead and dead[0].message and dead[0].message not in told + deployment.message:
        lines.append(f"replica {dead[0].replica_id}: {dead[0].message}")
    if dead and dead[0].log_tail.strip():
        lines.append(f"last lines of replica {dead[0].replica_id}:")
        lines += [f"  {line}" for line in dead[0].log_tail.rstrip().splitlines()]
    return lines


def base_urls(details: ServeInstanceDetails) -> list[str]:
    """Where HTTP proxies listen; an address that means all is told as this machine's."""
    scheme = "https" if details.http_options is not None and details.http_options.ssl_certfile else "http"
    found = []
    for group in details.target_groups:
        if group.protocol == "HTTP":
            for target in group.targets:
                host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(target.ip, target.ip)
                found.append(f"{scheme}://{f'[{host}]' if ':' in host else host}:{target.port}")
    return list(dict.fromkeys(found))


def urls(details: ServeInstanceDetails, app: ApplicationDetails) -> list[str]:
    """Where the application is reached; none without a route prefix, or without proxies."""
    if app.route_prefix is None:
        return []
    return [base + app.route_prefix for base in base_urls(details)]


COLUMNS = ("application", "status", "at", "deployment", "status ", "replicas")


def table(details: ServeInstanceDetails) -> list[list[str]]:
    """A row for each deployment, in COLUMNS; the application's cells only in its first."""
    rows = []
    for name, app in details.applications.items():
        first = [name, str(app.status), " ".join(urls(details, app)) or (app.route_prefix or "")]
        for deployment in app.deployments.values():
            rows.append([*first, deployment.name, str(deployment.status), _replicas(deployment)])
            first = ["", "", ""]
        if not app.deployments:
            rows.append([*first, "", "", ""])
    return rows


def _replicas(deployment: DeploymentDetails) -> str:
    counts: dict[str, int] = {}
    for replica in deployment.replicas:
        counts[str(replica.state)] = counts.get(str(replica.state), 0) + 1
    running = counts.pop("RUNNING", 0)
    others = "".join(f", {count} {state}" for state, count in sorted(counts.items()))
    return f"{running} of {deployment.target_num_replicas}{others}"


def notes(details: ServeInstanceDetails) -> list[str]:
    """What is wrong, and what autoscaling decided last, below the table."""
    lines = []
    for name, app in details.applications.items():
        if app.status not in (ApplicationStatus.RUNNING, ApplicationStatus.DELETING):
            lines.append(
                failure(name, app) if app.status != ApplicationStatus.DEPLOYING else _progress(name, app)
            )
        for deployment in app.deployments.values():
            detail = deployment.autoscaling_detail
            if detail is not None and detail.decisions:
                last = detail.decisions[-1]
                lines.append(
                    f"{name}/{deployment.name}: autoscaled from {last.prev_num_replicas} to "
                    f"{last.curr_num_replicas}: {last.reason}"
                )
    return lines


def _progress(name: str, app: ApplicationDetails) -> str:
    return f"application {name!r} is being deployed" + (f": {app.message}" if app.message else "")


def changes(before: ServeStatus, after: ServeStatus, names: Iterable[str]) -> list[str]:
    """A line for each of these applications whose status is another than before."""
    lines = []
    for name in names:
        old, new = before.applications.get(name), after.applications.get(name)
        if new is not None and (old is None or old.status is not new.status):
            lines.append(
                f"application {name!r} is {new.status}" + (f": {new.message}" if new.message else "")
            )
        elif new is None and old is not None:
            lines.append(f"application {name!r} is gone")
    return lines
