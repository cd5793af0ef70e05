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
  fenced_.assign(threads, 0);
}

uint32_t* Clocks::seen(uint32_t thread) {
  if (!partial_) {
    seen_.assign(size_t{threads_} * (threads_ + 1), 0);
    partial_ = true;
  }
  return &seen_[size_t{thread} * (threads_ + 1)];
}

void Clocks::join(const uint32_t* threads, uint32_t count) {
  if (count == threads_) {
    floor_ = tick();
    time_.assign(threads_, floor_);
    return;
  }
  uint32_t* joined = seen(threads[0]);
  for (uint32_t i = 1; i < count; ++i) {
    const uint32_t* row = seen(threads[i]);
    for (uint32_t j = 0; j <= threads_; ++j) joined[j] = std::max(joined[j], row[j]);
  }
  for (uint32_t i = 0; i < count; ++i) joined[threads[i]] = time_[threads[i]];
  uint32_t now = tick();
  for (uint32_t i = 0; i < count; ++i) {
    if (i) std::copy_n(joined, threads_ + 1, seen(threads[i]));
    time_[threads[i]] = now;
  }
}

void Clocks::release(uint32_t thread, Moment& to) {
  const uint32_t* row = seen(thread);
  to.resize(threads_ + 1);
  for (uint32_t j = 0; j <= threads_; ++j) to[j] = std::max(to[j], row[j]);
  to[thread] = time_[thread];
  time_[thread] = tick();
}

void Clocks::acquire(uint32_t thread, const Moment& from) {
  uint32_t* row = seen(thread);
  for (uint32_t j = 0; j < from.size(); ++j) row[j] = std::max(row[j], from[j]);
}

uint32_t Clocks::land(Moment& to) {
  to.resize(threads_ + 1);
  return to[copier()] = tick();
}

void Shadow::begin_block(uint32_t threads) {
  if (clocks.half_spent()) {
    clocks = {};
    std::fill(cells_.begin(), cells_.end(), Cell{});
  }
  clocks.begin_block(threads);
}

Conflict Shadow::read(uint32_t thread, size_t offset, size_t bytes, bool by_proxy) {
  Stamp mine(clocks.time(thread), Stamp::kPlain, thread);
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.reader == mine && !by_proxy) continue;  // a write since then would have cleared it
    if (cell.writer.time() < clocks.block_start()) return {Conflict::kNeverWritten, false, 0, i};
    if (cell.writer.kind() == Stamp::kInFlight) return {Conflict::kInFlight, true, cell.writer.thread(), i};
    if (!clocks.ordered(cell.writer, thread)) return {Conflict::kRace, true, cell.writer.thread(), i};
    if (by_proxy && !clocks.fenced(cell.writer)) return {Conflict::kNotFenced, true, cell.writer.thread(), i};
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

Conflict Shadow::write(uint32_t thread, size_t offset, size_t bytes, Stamp::Kind kind, bool by_proxy) {
  Stamp mine(clocks.time(thread), kind, thread);
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.writer.time() >= clocks.block_start()) {
      if (cell.writer.kind() == Stamp::kInFlight) return {Conflict::kInFlight, true, cell.writer.thread(), i};
      bool both_atomic = kind == Stamp::kAtomic && cell.writer.kind() == Stamp::kAtomic;
      if (!both_atomic && !clocks.ordered(cell.writer, thread)) {
        return {Conflict::kRace, true, cell.writer.thread(), i};
      }
      if (by_proxy && !clocks.fenced(cell.writer)) return {Conflict::kNotFenced, true, cell.writer.thread(), i};
    } else if (kind == Stamp::kAtomic) {
      return {Conflict::kNeverWritten, false, 0, i};
    }
    if (Conflict c = check_readers(cell, thread, i); c.what) return c;
    cell = {mine, {}, {}, {}};
  }
  return {};
}

void Shadow::land(Stamp stamp, size_t offset, size_t bytes) {
  std::fill_n(cells_.begin() + static_cast<ptrdiff_t>(offset), bytes, Cell{stamp, {}, {}, {}});
}

}  // namespace simt
