"""Autoscaling policies: functions from what is known of a deployment to the number of replicas it wants.

    def policy(context: AutoscalingContext) -> tuple[float, dict]: ...

Bounds, factors and delays of the deployment's AutoscalingConfig are applied to what a policy returns. Lives
here: the default. Does not: acting on it (`controller`).
"""

from __future__ import annotations

import math
from typing import Any

from retinue.serve.autoscaling_options import AutoscalingContext

__all__ = ["default_autoscaling_policy", "replica_queue_length_autoscaling_policy"]


def replica_queue_length_autoscaling_policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """So many replicas that each has `target_ongoing_requests`, queued requests counted.

    Where none runs, a request that waits is reason enough for the first; nobody can say more yet.
    """
    config = context.config
    if config is None:
        raise ValueError("the default policy needs the context's config")
    if context.current_num_replicas == 0:
        if context.total_num_requests > 0:
            first = math.ceil(config.get_upscaling_factor())
            return max(first, context.target_num_replicas), context.policy_state
        return context.target_num_replicas, {}
    return context.total_num_requests / config.get_target_ongoing_requests(), {}


default_autoscaling_policy = replica_queue_length_autoscaling_policy
