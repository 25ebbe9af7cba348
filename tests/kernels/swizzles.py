"""Make tiny_llm/kernels/sim/include/sim/swizzles.h: `python tests/kernels/swizzles.py > …`; a test compares."""

from itertools import permutations, product

WIDTH = 118


def names(size: int) -> list[tuple[int, ...]]:
    """The swizzles of a vector: any two components, any order of three or four different ones, one repeated."""
    pairs = list(product(range(size), repeat=2))
    orders = [order for count in (3, 4) for order in permutations(range(size), count)]
    repeated = [(i,) * count for count in (3, 4) for i in range(size)]
    return pairs + orders + repeated


def members(size: int) -> list[str]:
    found = []
    for letters in ("xyzw", "rgba"):
        for order in names(size):
            if letters == "rgba" and list(order) != list(range(order[0], order[0] + len(order))):
                continue  # colours: only runs, such as rgb
            indices = ",".join(map(str, order))
            found.append(f"Swizzle<T,{len(order)},{indices}> {''.join(letters[i] for i in order)};")
    return found


def header() -> str:
    lines = ["// Made by tests/kernels/swizzles.py: the members v.xy, v.zyx, … of each vector type.", "#pragma once"]
    for size in (2, 3, 4):
        line, rows = "", []
        for member in members(size):
            if len(line) + len(member) > WIDTH - 4:
                rows.append(line)
                line = ""
            line += " " + member
        rows.append(line)
        lines += [f"#define SIM_SWIZZLES{size}(T) \\", *(f"{row} \\" for row in rows[:-1]), rows[-1]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(header(), end="")
