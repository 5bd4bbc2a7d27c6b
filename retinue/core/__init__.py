"""The general task and actor runtime: tasks, actors, objects, nodes, head. Knows nothing of serve."""
