"""An agent that does not end when it is asked to."""

from tests.core import fake_agent


def main(lifeline_fd: int) -> None:
    fake_agent.main(lifeline_fd, is_stubborn=True)
