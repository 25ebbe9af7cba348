// What a thread knows of its place; the kernel and the runtime share this layout. Triple is 16 bytes, as MSL's uint3.
#pragma once
namespace sim {
template <class Triple> struct Context {
  Triple thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid;
  Triple threads_per_threadgroup, threads_per_grid, threadgroups_per_grid, dispatch_threads_per_threadgroup;
  Triple grid_origin, grid_size;
  unsigned thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  unsigned simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup, threads_per_simdgroup;
  unsigned thread_execution_width, thread_index_in_quadgroup, quadgroup_index_in_threadgroup;
  unsigned quadgroups_per_threadgroup, dispatch_quadgroups_per_threadgroup;
};
}  // namespace sim
