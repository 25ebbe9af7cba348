"""Destroy a thread's MLX streams before the thread ends."""

import threading

import mlx.core as mx


class _Streams:
    """An object local to a thread. The thread destroys it when it ends, and with it MLX's streams."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def __del__(self) -> None:
        if threading.get_ident() == self._thread:  # otherwise a debugger has kept the object beyond its thread's end
            mx.clear_streams()


_of_this_thread = threading.local()


def clear_streams_at_end() -> None:
    """Destroy MLX's streams of the calling thread when the thread ends. In the main thread, do nothing.

    MLX 0.32 may abort the process at its exit where a thread has computed and left its streams behind.
    """
    if threading.current_thread() is not threading.main_thread():
        _of_this_thread.streams = getattr(_of_this_thread, "streams", None) or _Streams()
