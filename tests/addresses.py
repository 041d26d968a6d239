"""Where a server of a test may listen."""

import socket


def free_address() -> str:
    """HOST:PORT of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return f"localhost:{server.getsockname()[1]}"
