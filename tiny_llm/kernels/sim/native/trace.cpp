// What each line asks of memory. A request is one access of all lanes of a simdgroup: the k-th time that each lane
// passes the line between two points where the lanes meet. Its sectors are the 32-byte pieces of memory that it
// touches; in threadgroup memory its cycles are the most words that fall into one of 32 banks of 4 bytes.
#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>

#include "runtime.h"

namespace sim {
constexpr u64 SECTOR = 32, BANKS = 32, WORD = 4;
struct Logged {
  i64 pc;
  u64 offset;
  u32 size, lane, turn;  // turn: how often this lane has passed this line before
  int buffer;
  bool write;
};
typedef std::tuple<i64, int, bool> Line;  // pc, buffer, write
static std::vector<Logged> logs[MAX_SIMDGROUPS];
static std::map<Line, Site> sites;

void begin_trace() {
  for (auto& log : logs) log.clear();
  sites.clear();
}

void log_access(u32 fiber, i64 pc, int buffer, u64 offset, u32 size, bool write) {
  Busy busy;
  logs[fiber / LANES].push_back({pc, offset, size, fiber % LANES, 0, buffer, write});
}

static u64 units_of(const Logged* begin, const Logged* end) {
  static std::vector<u64> units;
  units.clear();
  u64 unit = begin->buffer < 0 ? WORD : SECTOR;
  for (const Logged* a = begin; a < end; a++)
    for (u64 u = a->offset / unit; u <= (a->offset + a->size - 1) / unit; u++) units.push_back(u);
  std::sort(units.begin(), units.end());
  units.erase(std::unique(units.begin(), units.end()), units.end());
  if (begin->buffer >= 0) return units.size();
  u64 words[BANKS] = {}, most = 0;  // lanes that read one word share it
  for (u64 u : units) most = std::max(most, ++words[u % BANKS]);
  return most;
}

static void count_request(const Logged* begin, const Logged* end) {
  Site& site = sites[Line(begin->pc, begin->buffer, begin->write)];
  if (!site.requests) {
    site.pc = begin->pc;
    site.buffer = begin->buffer;
    site.write = begin->write;
    site.size = begin->size;
    std::fill(site.offsets, site.offsets + LANES, -1);
    for (const Logged* a = begin; a < end; a++) {
      site.offsets[a->lane] = i64(a->offset);
      site.lanes++;
    }
  }
  site.requests++;
  site.sectors += units_of(begin, end);
  for (const Logged* a = begin; a < end; a++) site.bytes += a->size;
}

void flush_trace(u32 simdgroup) {
  Busy busy;
  std::vector<Logged>& log = logs[simdgroup];
  if (log.empty()) return;
  static std::map<std::pair<u32, Line>, u32> turns;
  turns.clear();
  for (Logged& a : log) a.turn = turns[{a.lane, Line(a.pc, a.buffer, a.write)}]++;
  auto request = [](const Logged& a) { return std::make_tuple(a.pc, a.buffer, a.write, a.turn); };
  std::stable_sort(log.begin(), log.end(), [&](const Logged& a, const Logged& b) { return request(a) < request(b); });
  for (size_t i = 0, j = 0; i < log.size(); i = j) {
    while (j < log.size() && request(log[j]) == request(log[i])) j++;
    count_request(&log[i], &log[0] + j);
  }
  log.clear();
}

void end_trace() {
  for (u32 i = 0; i < MAX_SIMDGROUPS; i++) flush_trace(i);
  launched->site_count = 0;
  for (const auto& entry : sites)
    if (launched->site_count < launched->site_capacity) launched->sites[launched->site_count++] = entry.second;
}
}  // namespace sim
