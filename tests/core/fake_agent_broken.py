"""An agent that fails at once."""


def main(lifeline_fd: int) -> None:
    raise RuntimeError("no CPU on this machine")
