"""The runtime's structures (native/runtime.h), field by field."""

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p

__all__ = ["ROLES", "CBuffer", "CCounters", "CFinding", "CLaunch", "CSite", "c_char_p"]

ROLES = {"in": 0, "out": 1, "metadata": 2, "initialised": 3}


class CFinding(ctypes.Structure):
    _fields_ = [
        ("kind", c_int32),
        ("cause", c_int32),
        ("pc", c_int64),
        ("other_pc", c_int64),
        ("line", c_int32),
        ("other_line", c_int32),
        ("buffer", c_int32),
        ("write", c_int32),
        ("other_write", c_int32),
        ("same_value", c_int32),
        ("is_private", c_int32),
        ("index", c_int64),
        ("size", c_int64),
        ("limit", c_int64),
        ("thread", c_uint32 * 3),
        ("group", c_uint32 * 3),
        ("other_thread", c_int64),
        ("other_group", c_int64),
        ("name", c_char * 48),
        ("other_name", c_char * 48),
    ]


class CBuffer(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("size", c_uint64),
        ("item", c_uint32),
        ("role", c_int32),
        ("read", c_uint64),
        ("written", c_uint64),
        ("unique_read", c_uint64),
        ("unique_written", c_uint64),
    ]


class CSite(ctypes.Structure):
    _fields_ = [
        ("pc", c_int64),
        ("buffer", c_int32),
        ("write", c_int32),
        ("requests", c_uint64),
        ("bytes", c_uint64),
        ("sectors", c_uint64),
        ("lanes", c_uint32),
        ("size", c_uint32),
        ("offsets", c_int64 * 32),
    ]


class CCounters(ctypes.Structure):
    _fields_ = [
        (name, c_uint64)
        for name in (
            *("group_barriers", "simd_barriers", "collectives"),
            *("threadgroup_read", "threadgroup_written", "threadgroup_bytes", "groups", "threads"),
        )
    ]


class CLaunch(ctypes.Structure):
    _fields_ = [
        ("entry", c_void_p),
        ("grid", c_uint32 * 3),
        ("threadgroup", c_uint32 * 3),
        ("buffers", POINTER(CBuffer)),
        ("buffer_count", c_uint32),
        ("arguments", POINTER(c_void_p)),
        ("check", c_int32),
        ("trace", c_int32),
        ("seed", c_uint64),
        ("threadgroup_limit", c_uint32),
        ("seconds", c_double),
        ("counters", CCounters),
        ("findings", POINTER(CFinding)),
        ("finding_capacity", c_uint32),
        ("finding_count", c_uint32),
        ("sites", POINTER(CSite)),
        ("site_capacity", c_uint32),
        ("site_count", c_uint32),
    ]
