// In the place of MLX's file, whose overloads the simulator's own math already has.
#pragma once
