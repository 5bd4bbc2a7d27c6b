"""What runs user code: executors for tasks and for synchronous, threaded and async actors."""
