#include "shadow.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace simt {

uint32_t Clocks::tick() {
  if (++now_ >> 20) {
    std::fputs("simt: more synchronisations than a block's clock can count\n", stderr);
    std::abort();
  }
  return now_;
}

void Clocks::begin_block(uint32_t threads) {
  threads_ = threads;
  partial_ = false;
  block_start_ = floor_ = tick();
  time_.assign(threads, floor_);
}

void Clocks::join(const uint32_t* threads, uint32_t count) {
  if (count == threads_) {
    floor_ = tick();
    time_.assign(threads_, floor_);
    return;
  }
  if (!partial_) {
    seen_.assign(size_t{threads_} * threads_, 0);
    partial_ = true;
  }
  uint32_t* joined = &seen_[size_t{threads[0]} * threads_];
  for (uint32_t i = 1; i < count; ++i) {
    const uint32_t* row = &seen_[size_t{threads[i]} * threads_];
    for (uint32_t j = 0; j < threads_; ++j) joined[j] = std::max(joined[j], row[j]);
  }
  for (uint32_t i = 0; i < count; ++i) joined[threads[i]] = time_[threads[i]];
  uint32_t now = tick();
  for (uint32_t i = 0; i < count; ++i) {
    if (i) std::copy_n(joined, threads_, &seen_[size_t{threads[i]} * threads_]);
    time_[threads[i]] = now;
  }
}

void Shadow::begin_block(uint32_t threads) {
  if (clocks.half_spent()) {
    clocks = {};
    std::fill(cells_.begin(), cells_.end(), Cell{});
  }
  clocks.begin_block(threads);
}

Conflict Shadow::read(uint32_t thread, size_t offset, size_t bytes) {
  Stamp mine(clocks.time(thread), Stamp::kPlain, thread);
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.reader == mine) continue;  // a write since then would have cleared it
    if (cell.writer.time() < clocks.block_start()) return {Conflict::kNeverWritten, false, 0, i};
    if (cell.writer.kind() == Stamp::kInFlight) return {Conflict::kInFlight, true, cell.writer.thread(), i};
    if (!clocks.ordered(cell.writer, thread)) return {Conflict::kRace, true, cell.writer.thread(), i};
    if (cell.reader.thread() != thread) {
      (cell.reader.thread() / 32 == thread / 32 ? cell.same_warp : cell.other_warp) = cell.reader;
    }
    cell.reader = mine;
  }
  return {};
}

Conflict Shadow::check_readers(const Cell& cell, uint32_t thread, size_t offset) const {
  for (Stamp reader : {cell.reader, cell.same_warp, cell.other_warp}) {
    if (!clocks.ordered(reader, thread)) return {Conflict::kRace, false, reader.thread(), offset};
  }
  return {};
}

Conflict Shadow::write(uint32_t thread, size_t offset, size_t bytes, Stamp::Kind kind) {
  Stamp mine(clocks.time(thread), kind, thread);
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.writer.time() >= clocks.block_start()) {
      if (cell.writer.kind() == Stamp::kInFlight) return {Conflict::kInFlight, true, cell.writer.thread(), i};
      bool both_atomic = kind == Stamp::kAtomic && cell.writer.kind() == Stamp::kAtomic;
      if (!both_atomic && !clocks.ordered(cell.writer, thread)) {
        return {Conflict::kRace, true, cell.writer.thread(), i};
      }
    } else if (kind == Stamp::kAtomic) {
      return {Conflict::kNeverWritten, false, 0, i};
    }
    if (Conflict c = check_readers(cell, thread, i); c.what) return c;
    cell = {mine, {}, {}, {}};
  }
  return {};
}

void Shadow::land(uint32_t thread, size_t offset, size_t bytes) {
  Stamp mine(clocks.time(thread), Stamp::kPlain, thread);
  for (size_t i = offset; i < offset + bytes; ++i) cells_[i] = {mine, {}, {}, {}};
}

}  // namespace simt
