import inspect

from retinue.util import state
from retinue.util.state.common import ActorState, NodeState


def test_functions_show_their_names_arguments_and_rows() -> None:
    assert (state.list_nodes.__name__, state.get_actor.__doc__) == (
        "list_nodes",
        "An actor by its id (hex). None if it is not known.",
    )
    listing = inspect.signature(state.list_nodes)
    assert list(listing.parameters)[:4] == ["address", "filters", "limit", "timeout"]
    assert listing.return_annotation == list[NodeState]
    assert inspect.signature(state.get_actor).return_annotation == ActorState | None
    assert list(inspect.signature(state.summarize_tasks).parameters)[2] == "raise_on_missing_output"
