"""What stands before the routes: connections, bodies, origins, keys and limits. Plain ASGI, which sees a request before
its body is read."""
