"""Confine this process, then run the Python code that comes on stdin. Run as a script of its own, never imported.

    python -I -B confine.py ROOT SCRATCH SECONDS MEGABYTES < code

On Linux, Landlock lets the process read ROOT and Python's own files, and write below SCRATCH only. A seccomp filter
forbids sockets, other processes, programs, signals to other processes, and changes of permissions. On macOS
`sandbox-exec`, which starts this script, does the same. A process that can't be confined says so, and runs nothing.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

UNCONFINED = 97  # the exit code where the system can't confine a process
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the system calls of Landlock
READ = 0b1100  # files and folders
WRITE = 0b1111_1111_1111_0010
OF_FILES = 0b1_1100_0000_0000_0111  # the rights that a rule on a single file may give
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # kinds of access that each version of Landlock knows; 16 in later ones
ALLOW, FAIL, KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
EPERM, ENOSYS = 1, 38
LOAD, EQUAL, SET, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # instructions of the filter
NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16  # where the filter finds a system call's number and first argument
CLONE_THREAD = 0x10000
# the architecture's code, clone, clone3, prlimit64, and the system calls that are refused: sockets, io_uring, fork,
# exec, signals, ptrace, changes of modes, owners, times and attributes
MACHINES = {
    "x86_64": (
        0xC000_003E,
        (56, 435, 302),
        (
            *(41, 425, 57, 58, 59, 322, 62, 200, 234, 424, 129, 297, 101, 311),
            *(90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 280, 261, 188, 189, 190, 197, 198, 199),
        ),
    ),
    "aarch64": (
        0xC000_00B7,
        (220, 435, 261),
        [198, 425, 221, 281, 129, 130, 131, 424, 138, 240, 117, 271, 52, 53, 452, 54, 55, 88, 5, 6, 7, 14, 15, 16],
    ),
}


def main() -> None:
    root, scratch = sys.argv[1:3]
    seconds, megabytes = int(sys.argv[3]), int(sys.argv[4])
    code = sys.stdin.buffer.read().decode("utf-8", "replace")
    limit(seconds, megabytes)
    if sys.platform == "linux":
        confine(root, scratch)
    run(code)


def limit(seconds: int, megabytes: int) -> None:
    """Set the process's limits of time, memory, file size and open files."""
    size = megabytes << 20
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: size,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS refuses a limit of the address space
        limits[resource.RLIMIT_AS] = size
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


def confine(root: str, scratch: str) -> None:
    """Take away the process's rights, for good. Exits where the kernel can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or not restrict_files(libc, root, scratch):
        give_up("Landlock")
    if platform.machine() not in MACHINES or not restrict_calls(libc):
        give_up("seccomp")


def restrict_files(libc: ctypes.CDLL, root: str, scratch: str) -> bool:
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = (1 << RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("Q", handled)
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)}
    system = ("/usr/lib", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/dev/urandom")
    rules = dict.fromkeys([root, *own, *system], READ)
    rules["/dev/null"] = READ | WRITE
    rules[scratch] = READ | WRITE
    for path, rights in rules.items():
        if not allow(libc, ruleset, path, rights & handled):
            return False
    return bool(libc.syscall(RESTRICT_SELF, ruleset, 0) == 0)


def allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> bool:
    """Add a rule for a path. Paths that do not exist need none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    if not os.path.isdir(path):
        rights &= OF_FILES
    rule = struct.pack("=Qi", rights, fd)
    added = libc.syscall(ADD_RULE, ruleset, 1, rule, 0)
    os.close(fd)
    return bool(added == 0)


def restrict_calls(libc: ctypes.CDLL) -> bool:
    program = system_call_filter(platform.machine())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
    return bool(libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0) == 0)


def system_call_filter(machine: str) -> bytes:
    """Return the program of the seccomp filter. A jump skips `yes` or `no` instructions."""
    architecture, (clone, clone3, prlimit), refused = MACHINES[machine]
    lines = [
        instruction(LOAD, ARCHITECTURE),
        instruction(EQUAL, architecture, yes=1),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
        instruction(AT_LEAST, 0x4000_0000, no=1),  # calls of another kind, x32
        instruction(RETURN, FAIL | EPERM),
        instruction(EQUAL, clone3, no=1),  # its flags can't be read; the C library then calls clone
        instruction(RETURN, FAIL | ENOSYS),
    ]
    for number in refused:
        lines += [instruction(EQUAL, number, no=1), instruction(RETURN, FAIL | EPERM)]
    lines += [
        instruction(EQUAL, clone, no=4),
        instruction(LOAD, ARGUMENT),
        instruction(SET, CLONE_THREAD, no=1),
        instruction(RETURN, ALLOW),
        instruction(RETURN, FAIL | EPERM),
        instruction(EQUAL, prlimit, no=3),  # of this process only
        instruction(LOAD, ARGUMENT),
        instruction(EQUAL, 0, yes=1),
        instruction(RETURN, FAIL | EPERM),
        instruction(RETURN, ALLOW),
    ]
    return b"".join(lines)


def instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def give_up(missing: str) -> None:
    print(f"this system can't confine a process: no {missing}", file=sys.stderr)
    sys.exit(UNCONFINED)


def run(code: str) -> None:
    """Run the code. An exception becomes one line on stderr and the exit code 1."""
    message = ""
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        message = "" if end.code in (None, 0) else f"SystemExit: {end.code}"
    except SyntaxError as error:
        message = f"SyntaxError: {error.msg}"
    except BaseException as error:
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            message = message or f"{type(error).__name__}: {error}"
    if message:
        print(message, file=sys.stderr, flush=True)
    os._exit(1 if message else 0)  # threads of the code must not keep the process alive


if __name__ == "__main__":
    main()
