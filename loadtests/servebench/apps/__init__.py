"""The same applications for every peer. Each module starts one server: `python FILE WORK PORT`.

Works: `echo` answers the JSON that it got; `stream` sends numbered events, at once or with a pause between
them; `raw` answers the length of the body; `batch` doubles numbers, in batches that take a fixed time;
`embed` turns texts into vectors, in batches.
"""
