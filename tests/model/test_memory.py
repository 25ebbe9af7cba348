"""Free memory is what a container and `ulimit` leave, not what the machine has."""

import resource
from pathlib import Path

import mlx.core as mx
import pytest

from tiny_llm import _machine, doctor
from tiny_llm.model import memory

MB = 1 << 20


class Machine:
    """A faked /sys/fs/cgroup and /proc of a machine with 4000 MB free."""

    def __init__(self, root: Path):
        self.cgroups, self.proc = root / "cgroup", root / "proc"
        self.write(self.proc / "meminfo", f"MemTotal: 9 kB\nMemAvailable:  {4000 * 1024} kB\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, path: str, **files: object) -> None:
        """A group of version 2: `max=`, `current=`, `high=` and `stat=`."""
        for name, value in files.items():
            self.write(self.cgroups / path / f"memory.{name}", f"{value}\n")

    def old_group(self, path: str, limit: object, usage: object, stat: str = "") -> None:
        folder = self.cgroups / "memory" / path
        self.write(folder / "memory.limit_in_bytes", f"{limit}\n")
        self.write(folder / "memory.usage_in_bytes", f"{usage}\n")
        self.write(folder / "memory.stat", stat)

    def member(self, text: str) -> None:
        self.write(self.proc / "cgroup", text)

    def free(self) -> float:
        """What the engine takes as free, in MB."""
        found = memory.available_bytes()
        assert found is not None
        return found / MB


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(_machine, "CGROUPS", made.cgroups)
    monkeypatch.setattr(_machine, "OWN_CGROUPS", made.proc / "cgroup")
    monkeypatch.setattr(_machine, "OWN_PAGES", made.proc / "statm")
    monkeypatch.setattr(_machine, "MEMINFO", made.proc / "meminfo")
    monkeypatch.setattr(mx, "device_info", dict)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return made


def test_without_limits_it_is_the_machines(machine: Machine) -> None:
    assert machine.free() == 4000


def test_a_container_of_version_2_has_its_own_limit(machine: Machine) -> None:
    """Of `docker run -m 2g` the host's memory was taken as free, and the kernel killed the process."""
    machine.group("", max=2000 * MB, current=500 * MB)
    assert machine.free() == 1500


def test_a_container_of_version_1_has_its_own_limit(machine: Machine) -> None:
    machine.member("5:cpu,cpuacct:/\n4:memory:/docker/1f\n0::/\n")
    machine.old_group("docker/1f", 900 * MB, 300 * MB, f"total_inactive_file {100 * MB}\ntotal_active_file {50 * MB}")
    assert machine.free() == 750


def test_a_container_that_sees_the_root_of_its_groups_alone(machine: Machine) -> None:
    machine.member("4:memory:/docker/1f\n")
    machine.old_group("", 900 * MB, 300 * MB)
    assert machine.free() == 600


def test_pages_of_files_that_can_be_dropped_are_free(machine: Machine) -> None:
    stat = f"anon 7\ninactive_file {300 * MB}\nactive_file {100 * MB}\nslab 5\n"
    machine.group("", max=2000 * MB, current=1000 * MB, stat=stat)
    assert machine.free() == 1400


def test_more_pages_of_files_than_used_memory_do_not_raise_the_limit(machine: Machine) -> None:
    machine.group("", max=2000 * MB, current=100 * MB, stat=f"inactive_file {5000 * MB}")
    assert machine.free() == 2000


@pytest.mark.parametrize("tightest", ["", "a", "a/b", "a/b/c"])
def test_the_smallest_limit_of_all_ancestors_counts(machine: Machine, tightest: str) -> None:
    machine.member("0::/a/b/c\n")
    for path in ("", "a", "a/b", "a/b/c"):
        machine.group(path, max=(700 if path == tightest else 3000) * MB, current=100 * MB)
    assert machine.free() == 600


def test_a_group_beside_the_own_one_does_not_count(machine: Machine) -> None:
    machine.member("0::/a\n")
    machine.group("b", max=700 * MB, current=0)
    assert machine.free() == 4000


def test_the_limit_at_which_the_kernel_slows_a_group_down_counts(machine: Machine) -> None:
    machine.group("", max="max", high=800 * MB, current=100 * MB)
    assert machine.free() == 700


@pytest.mark.parametrize("text", ["max", "", "garbage", "-5", "1e9", "٣٣", "9" * 4000])
def test_no_limit_and_what_is_no_number_count_as_none(machine: Machine, text: str) -> None:
    machine.member(f"{text}\n0::/../..\n:::::\n")
    machine.group("", max=text, current=text, stat=text)
    assert machine.free() == 4000


def test_the_number_that_means_unlimited_in_version_1(machine: Machine) -> None:
    machine.old_group("", 9223372036854771712, 500 * MB)
    assert machine.free() == 4000


def test_a_limit_whose_use_is_not_told(machine: Machine) -> None:
    machine.group("", max=800 * MB)
    assert machine.free() == 800


def test_files_that_are_no_text_or_folders_count_as_none(machine: Machine) -> None:
    (machine.cgroups / "memory.max").mkdir(parents=True)
    machine.proc.joinpath("cgroup").write_bytes(b"\xff\xfe\x00")
    machine.proc.joinpath("statm").mkdir()
    assert machine.free() == 4000


@pytest.mark.parametrize(
    "line", ["MemAvailable:\n", "MemAvailable: many kB\n", "MemAvailable: -1 kB\n", "MemAvailable\n"]
)
def test_a_malformed_figure_of_the_system_counts_as_none(machine: Machine, line: str) -> None:
    """`tiny-llm doctor` had its own reading of the file, and such a line ended it with an IndexError."""
    machine.proc.joinpath("meminfo").write_text(line)
    assert memory.available_bytes() is None
    assert doctor._memory().name == "memory"


def test_a_limit_that_is_used_up_leaves_nothing(machine: Machine) -> None:
    machine.group("", max=100 * MB, current=300 * MB)
    assert machine.free() == 0


def test_a_limit_holds_where_the_machine_says_nothing(machine: Machine) -> None:
    machine.proc.joinpath("meminfo").unlink()
    machine.group("", max=500 * MB, current=0)
    assert machine.free() == 500


@pytest.mark.parametrize(("kind", "left"), [(resource.RLIMIT_AS, 1000 - 400), (resource.RLIMIT_DATA, 1000 - 300)])
def test_ulimit_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: int, left: int) -> None:
    page = resource.getpagesize()
    pages = [400 * MB // page, 200, 100, 1, 0, 300 * MB // page, 0]
    machine.write(machine.proc / "statm", " ".join(map(str, pages)) + "\n")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (1000 * MB, 2000 * MB) if asked == kind else unlimited)
    assert machine.free() == left
