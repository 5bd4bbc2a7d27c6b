"""A deployment's replica: one process that answers requests with the user's class or function.

`actor` is what the controller talks to, `door` what routers talk to. Requests: `door` -> `slots` (is there
room?) -> `http`, `asgi` or `calls` (what does it say, what is answered) -> `user_code` (run it).
"""
