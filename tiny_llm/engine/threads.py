"""Destroy a thread's MLX streams before the thread ends."""

import threading

import mlx.core as mx


class _Streams:
    """Destroyed when the thread that it was made in ends, by that thread."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def __del__(self) -> None:
        if threading.get_ident() == self._thread:  # a debugger may have kept it beyond its thread's end
            mx.clear_streams()


_of_this_thread = threading.local()


def clear_streams_at_end() -> None:
    """Destroy MLX's streams of the calling thread when it ends. The main thread needs no such care.

    MLX 0.32 aborts the process at its exit where a thread that computed has left its streams behind.
    """
    if threading.current_thread() is not threading.main_thread():
        _of_this_thread.streams = getattr(_of_this_thread, "streams", None) or _Streams()
