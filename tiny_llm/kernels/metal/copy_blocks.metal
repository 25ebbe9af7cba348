// Whole blocks of a pool, one after the other: what copy-on-write puts into the blocks that others no longer hold.
// MLX gives a kernel no output that it had before, so the copies come out by themselves.
// pool (H, N, SIZE), out (H, C, SIZE) of type T; sources (C,) int: blocks of the pool; blocks is N, count is C, int.
// A group copies a part of one block of one head; each thread one number.
// BODY
const uint at = thread_position_in_grid.x, copy = thread_position_in_grid.y, head = thread_position_in_grid.z;
if (at >= SIZE) {
  return;
}
const uint source = head * uint(blocks) + uint(sources[copy]);
out[(head * uint(count) + copy) * SIZE + at] = pool[source * SIZE + at];
