// In the place of MLX's file, whose overloads metal_strict.h has.
#pragma once
