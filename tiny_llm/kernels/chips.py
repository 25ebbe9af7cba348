"""What a GPU can do at most, by its vendor's account."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Memory bandwidth in GB/s and float32 arithmetic in TFLOP/s, for the largest variant.

    `teraflops` is None where the vendor names no figure.
    """

    name: str
    bandwidth: float
    teraflops: float | None
    source: str

    @property
    def balance(self) -> float | None:
        """Operations per byte from which on arithmetic, not memory, is the bound."""
        return self.teraflops * 1e3 / self.bandwidth if self.teraflops else None


# Bandwidths are from the vendors' announcements and specifications, looked up again in their pages and in reports on
# them. Three could not be confirmed so: M1 (Apple names none; 128 bit of LPDDR4X-4266 make 68.3, and M2's 100 are "50
# percent more"), M3 and M4. Of the arithmetic M1's 2.6 was confirmed, and H200's 67 by a data base only (66.9).
UNCONFIRMED = "TFLOP/s reported, not confirmed there"
CHIPS = (
    Chip("M1", 68.3, 2.6, "Apple, announcement of M1 (November 2020); GB/s computed from 128 bit of LPDDR4X-4266"),
    Chip("M1 Pro", 200, 5.2, f"Apple, announcement of M1 Pro and M1 Max (October 2021); {UNCONFIRMED}"),
    Chip("M1 Max", 400, 10.4, f"Apple, announcement of M1 Pro and M1 Max (October 2021); {UNCONFIRMED}"),
    Chip("M1 Ultra", 800, 21, f"Apple, announcement of M1 Ultra (March 2022); {UNCONFIRMED}"),
    Chip("M2", 100, 3.6, f"Apple, announcement of M2 (June 2022); {UNCONFIRMED}"),
    Chip("M2 Pro", 200, None, "Apple, announcement of M2 Pro and M2 Max (January 2023)"),
    Chip("M2 Max", 400, None, "Apple, announcement of M2 Pro and M2 Max (January 2023)"),
    Chip("M2 Ultra", 800, None, "Apple, announcement of M2 Ultra (June 2023)"),
    Chip("M3", 100, None, "Apple, MacBook Pro technical specifications (2023)"),
    Chip("M3 Pro", 150, None, "Apple, MacBook Pro technical specifications (2023)"),
    Chip("M3 Max", 400, None, "Apple, MacBook Pro technical specifications (2023)"),
    Chip("M3 Ultra", 819, None, "Apple, announcement of M3 Ultra (March 2025)"),
    Chip("M4", 120, None, "Apple, announcement of M4 (May 2024)"),
    Chip("M4 Pro", 273, None, "Apple, announcement of M4 Pro and M4 Max (October 2024)"),
    Chip("M4 Max", 546, None, "Apple, announcement of M4 Pro and M4 Max (October 2024)"),
    Chip("H200", 4800, 67, "NVIDIA, H200 data sheet (SXM, without tensor cores)"),
)
