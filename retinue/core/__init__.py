"""The general task and actor runtime: tasks, actors, objects, scheduling, nodes, head. Knows nothing of serve."""
