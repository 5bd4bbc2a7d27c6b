"""Every internal message, how it is framed, and how a connection proves itself. No I/O in this room."""
