"""A loopback TCP proxy that can delay, reset, swallow or pass on what goes through it: a network that parts."""

import socket
import struct
import threading


class Proxy:
    """Passes connections on to an address while ``fault`` is None.

    Attributes:
      fault: None; ``("delay", seconds)``; ``("reset",)``: connections are torn down; ``("black hole",)``: they are
        accepted and nothing ever comes back.
      place: its own address.
    """

    def __init__(self, target):
        self.target, self.fault, self._stop = target, None, threading.Event()
        self._door = socket.create_server(("127.0.0.1", 0))
        self._door.settimeout(0.05)
        self.place, self._threads = self._door.getsockname(), []
        self._serve(self._accept)

    def _serve(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while not self._stop.is_set():
            try:
                near, _ = self._door.accept()
            except TimeoutError:
                continue
            self._serve(self._connection, near)

    def _connection(self, near):
        kind, *more = self.fault or ("pass",)
        with near:
            if kind == "reset":
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if kind == "black hole":
                self._stop.wait(30)
                return
            if kind == "delay":
                self._stop.wait(more[0])
            with socket.create_connection(self.target, timeout=5) as far:
                far.sendall(near.recv(4096))
                near.sendall(far.recv(4096))

    def close(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self._door.close()
