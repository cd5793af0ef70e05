// wgmma and setmaxnreg (PTX ISA 8.5, sections 9.7.15 and 9.7.19.5).
#include <algorithm>
#include <bit>
#include <cstring>

#include "engine.h"
#include "simt/async.h"
#include "simt/mma.h"

namespace simt {
namespace {

constexpr int32_t kRubbish = 0x5badf00d;  // in a register that a wgmma is still to write
constexpr unsigned kRegistersOfAnSm = 64 << 10;
constexpr int kDepth = 32;  // bytes of K

// Where the 16 bytes of B that begin with row k and column n lie, by their descriptor, in units of 16 bytes: start
// address bits 0 to 13, offset of the leading dimension bits 16 to 29, of the stride bits 32 to 45, base offset bits 49
// to 51, swizzle mode bits 62 and 63. With the 128-byte swizzle:
// K-major: rows of 128 bytes along K in groups of eight, a stride apart; k is in bytes. The leading offset is not used.
// N-major: rows of 64 columns for each k, eight k's a stride apart, the next 64 columns a leading offset on.
uint32_t place_in_b(uint64_t descriptor, bool n_major, int n, int k) {
  auto field = [&](int at) { return static_cast<uint32_t>(descriptor >> at & 0x3fff) << 4; };
  auto at = [](int x) { return static_cast<uint32_t>(x); };
  const uint32_t address =
      field(0) + (n_major ? at(n / 64) * field(16) + at(k / 8) * field(32) + at(k % 8 * 128 + n % 64 * 2)
                          : at(n / 8) * field(32) + at(n % 8 * 128 + k));
  return address ^ (address >> 7 & 7) << 4;
}

void check_descriptor(Worker& w, uint64_t descriptor, Location at) {
  if (descriptor >> 62 != 1) w.fail("wgmma: this layer knows descriptors with a 128-byte swizzle alone", at);
  if (descriptor >> 49 & 7) w.fail("wgmma: this layer knows descriptors of base offset 0 alone", at);
}

// Reads B as the warpgroup does; the accesses are those of t.
void read_b(Thread& t, uint64_t descriptor, bool n_major, int n, int8_t (*b)[kDepth]) {
  Worker& w = *t.worker;
  auto base = reinterpret_cast<uintptr_t>(w.shared) - shared_address(w.shared);
  auto read = [&](int column, int k) {
    uintptr_t from = base + place_in_b(descriptor, n_major, column, k);
    w.shared_access(t, from, 16, -1, nullptr, "a wgmma's read", true);
    return reinterpret_cast<const int8_t*>(from);
  };
  if (n_major) {
    for (int k = 0; k < kDepth / 2; ++k) {
      for (int column = 0; column < n; column += 8) {
        const int8_t* from = read(column, k);
        for (int i = 0; b != nullptr && i < 8; ++i) std::memcpy(b[column + i] + 2 * k, from + 2 * i, 2);
      }
    }
  } else {
    for (int column = 0; column < n; ++column) {
      for (int k = 0; k < kDepth; k += 16) {
        const int8_t* from = read(column, k);
        if (b != nullptr) std::memcpy(b[column] + k, from, 16);
      }
    }
  }
}

Accumulator* accumulator(Thread& t, const int32_t* d) {
  auto found = std::find_if(t.accumulators.begin(), t.accumulators.end(), [&](auto& a) { return a.d == d; });
  return found == t.accumulators.end() ? nullptr : &*found;
}

using Rows = const int8_t (*)[kDepth];

// Calls f(register of D, row, column).
template <class Lane, class F>
void for_each_of_d(Lane lane, int n, F f) {
  for (int i = 0; i < 32; ++i) {
    int32_t* values = accumulator(lane(i), lane(i).wgmmas.front().d)->values.data();
    for (int r = 0; r < n / 2; ++r) f(values[r], i / 4 + 8 * (r / 2 % 2), r / 4 * 8 + 2 * (i % 4) + r % 2);
  }
}

template <class Lane>
void multiply_s8(Lane lane, const Wgmma& w, Rows a, Rows b) {
  for_each_of_d(lane, w.n, [&](int32_t& d, int row, int column) {
    int32_t sum = 0;
    for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
    d = w.accumulate ? d + sum : sum;
  });
}

template <class Lane>
void multiply_float(Lane lane, const Wgmma& w, Rows a, Rows b) {
  auto element = [](const int8_t* row, int k) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * k, sizeof bits);
    return uint32_t{bits};
  };
  std::vector<float> memory(static_cast<size_t>(w.n) * 16);
  auto* sums = reinterpret_cast<float (*)[16][kSumColumns]>(memory.data());  // [n / 8]
  if (w.accumulate) {
    for_each_of_d(lane, w.n, [&](int32_t d, int row, int column) {
      sums[column / kSumColumns][row][column % kSumColumns] = std::bit_cast<float>(d);
    });
  }
  Row rows[16];
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kSumDepth; ++k) {
      uint32_t bits = element(a[row], k);
      rows[row].value[k] = decode(w.format, bits), rows[row].exponent[k] = exponent_of(w.format, bits);
    }
  }
  for (int tile = 0; tile < w.n / kSumColumns; ++tile) {
    Columns columns;
    for (int k = 0; k < kSumDepth; ++k) {
      for (int i = 0; i < kSumColumns; ++i) {
        uint32_t bits = element(b[tile * kSumColumns + i], k);
        columns.value[k][i] = decode(w.format, bits), columns.exponent[k][i] = exponent_of(w.format, bits);
      }
    }
    for (int row = 0; row < 16; ++row) add_products(sums[tile][row], rows[row], columns);
  }
  for_each_of_d(lane, w.n, [&](int32_t& d, int row, int column) {
    d = std::bit_cast<int32_t>(sums[column / kSumColumns][row][column % kSumColumns]);
  });
}

// The oldest wgmma of all lanes. Rows of A and D: lane / 4 and 8 more; a register of A holds four bytes of K from
// 4 (lane % 4) on, its upper two 16 further; D: columns 8 j + 2 (lane % 4) and 1 more, for registers 4 j and on.
void multiply(void* const operands[kWarp]) {
  auto lane = [&](int i) -> Thread& { return *static_cast<Thread*>(operands[i]); };
  const Wgmma first = lane(0).wgmmas.front();
  int8_t a[16][kDepth];
  for (int i = 0; i < 32; ++i) {
    const Wgmma& mine = lane(i).wgmmas.front();
    if (std::memcmp(mine.a, mine.a_at_issue, sizeof mine.a_at_issue)) {
      lane(i).worker->fail("wgmma: registers of A were written while it was not finished");
    }
    for (int r = 0; r < 4; ++r) std::memcpy(&a[i / 4 + 8 * (r % 2)][4 * (i % 4) + 16 * (r / 2)], &mine.a[r], 4);
  }
  std::vector<int8_t> memory(static_cast<size_t>(first.n) * kDepth);
  auto* b = reinterpret_cast<int8_t (*)[kDepth]>(memory.data());
  read_b(lane(0), first.descriptor, first.n_major, first.n, b);
  if (first.format.exponent_bits == 0) return multiply_s8(lane, first, a, b);
  multiply_float(lane, first, a, b);
}

void finish_oldest(Thread& t) {
  int32_t* d = t.wgmmas.front().d;
  t.wgmmas.erase(t.wgmmas.begin());
  if (std::any_of(t.wgmmas.begin(), t.wgmmas.end(), [&](const Wgmma& w) { return w.d == d; })) return;
  Accumulator* sums = accumulator(t, d);
  if (std::any_of(d, d + sums->values.size(), [](int32_t x) { return x != kRubbish; })) {
    t.worker->fail("wgmma: registers of D were written while it was not finished");
  }
  std::copy(sums->values.begin(), sums->values.end(), d);
  t.accumulators.erase(t.accumulators.begin() + (sums - t.accumulators.data()));
}

void together(const char* name, Location at) {
  aligned(name, nullptr, [](void* const[32], unsigned) {}, at);
}

}  // namespace

void wgmma_fence(Location at) {
  needs_hopper("wgmma.fence", at).wgmma_fenced = true;
  together("wgmma.fence", at);
}

namespace {

void issue(int32_t* d, Format format, int n, const uint32_t* a, uint64_t descriptor, bool n_major, bool accumulate,
           Location at) {
  Thread& t = needs_hopper("wgmma", at);
  Worker& w = *t.worker;
  if (!t.wgmma_fenced) w.fail("wgmma: no wgmma.fence since the group before", at);
  check_descriptor(w, descriptor, at);
  Wgmma issued{d, format, n, a, {}, descriptor, n_major, accumulate};
  std::memcpy(issued.a_at_issue, a, sizeof issued.a_at_issue);
  t.wgmmas.push_back(issued);
  if (!accumulator(t, d)) {
    t.accumulators.push_back({d, {d, d + n / 2}});
    std::fill_n(d, n / 2, kRubbish);
  }
  // It may read B as soon as it is issued.
  w.warpgroup(t, "wgmma", descriptor, [&] { read_b(t, descriptor, n_major, n, nullptr); }, at);
}

}  // namespace

void wgmma_s8(int32_t* d, int n, const uint32_t* a, uint64_t descriptor, bool accumulate, Location at) {
  issue(d, {}, n, a, descriptor, false, accumulate, at);
}

void wgmma_float(float* d, Format format, int n, const uint32_t* a, uint64_t descriptor, bool n_major, bool accumulate,
                 Location at) {
  issue(reinterpret_cast<int32_t*>(d), format, n, a, descriptor, n_major, accumulate, at);
}

void wgmma_commit(Location at) {
  Thread& t = needs_hopper("wgmma.commit_group", at);
  size_t committed = 0;
  for (size_t n : t.wgmma_groups) committed += n;
  t.wgmma_groups.push_back(t.wgmmas.size() - committed);
  t.wgmma_fenced = false;
  together("wgmma.commit_group", at);
}

void wgmma_wait(unsigned groups_left, Location at) {
  Thread& t = needs_hopper("wgmma.wait_group", at);
  size_t finished = 0;
  while (t.wgmma_groups.size() > groups_left) {
    finished += t.wgmma_groups.front();
    t.wgmma_groups.erase(t.wgmma_groups.begin());
  }
  for (size_t i = 0; i < finished; ++i) {
    aligned("wgmma.wait_group", &t, [](void* const operands[32], unsigned) { multiply(operands); }, at);
    finish_oldest(t);
  }
}

// ---- registers ----

void Worker::set_registers(Thread& t, const char* name, unsigned count, Location at) {
  if (count < 24 || count > 256 || count % 8) {
    fail(std::string(name) + ": expected a multiple of 8 from 24 to 256, not " + std::to_string(count), at);
  }
  warpgroup(t, name, count, [] {}, at);
  registers_[t.linear / kWarpgroup] = count;
  unsigned sum = 0, known = 0, warpgroups = count_ / kWarpgroup;
  for (unsigned i = 0; i < warpgroups; ++i) sum += registers_[i] * kWarpgroup, known += registers_[i] != 0;
  // What a block begins with is all that its warpgroups can share: as many a thread as an SM has for them, in eights.
  // Seen on an H200: 32 + 2 * 240 a thread of three warpgroups, 512 more than the 168 each at first, never return.
  const unsigned given = kRegistersOfAnSm / count_ / 8 * 8 * count_;
  if (known == warpgroups && sum > given) {
    fail(std::string(name) + ": the block's threads would have " + std::to_string(sum) + " registers, more than the " +
             std::to_string(given) + " that they began with",
         at);
  }
}

void set_registers(const char* name, unsigned count, Location at) {
  Thread& t = needs_hopper(name, at);
  t.worker->set_registers(t, name, count, at);
}

}  // namespace simt
