"""Numbers of bytes as texts."""


def size(num_bytes: float) -> str:
    """Return a number of bytes as a person reads it, in powers of 1000 as disks and download pages count."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
