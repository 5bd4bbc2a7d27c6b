"""What jobs, tasks and actors may ask of their worker processes."""

from retinue.core.runtime_env import RuntimeEnv, RuntimeEnvConfig

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]
