// How CPU kernels use threads: one pool in the process, no nesting. Work is dealt out in shares, one a thread, and is
// taken from them in pieces: from the thread's own, then from those of others. So one that is late, or that the
// system has stopped, holds up no more than the piece that it has begun; and that piece goes on at once on the
// processor of a thread that has nothing left to do, where the first has been stopped for others' sake.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pybatch {

// How many threads to use, the calling one among them: what `count` says when asked, 1 before it is set.
void set_num_threads_source(int (*count)());
int num_threads();

// Units [begin, end); those up to `limit` are likely to be the thread's next.
struct Piece {
  int64_t begin, end, limit;
};

using RunPiece = void (*)(const Piece&, void* context);

// Calls f with pieces of [0, n), and rethrows here the first exception that one threw. Of another thread's call that is
// under way, or of a piece, all of it runs on the calling thread. Pieces compute by IEEE 754's defaults (float_mode.h).
void run_parallel(int64_t n, int64_t grain, int64_t step, RunPiece f, void* context);

// Splits [0, n) into contiguous pieces and calls f(begin, end) or f(piece) on each. grain: units that are worth a
// thread. step: in which pieces are cut, where the rest of a share allows. How the range is split must never change a
// result.
template <class F>
void parallel_for(int64_t n, int64_t grain, int64_t step, const F& f) {
  run_parallel(
      n, grain, step,
      [](const Piece& piece, void* context) {
        const F& f = *static_cast<const F*>(context);
        if constexpr (std::is_invocable_v<const F&, const Piece&>) {
          f(piece);
        } else {
          f(piece.begin, piece.end);
        }
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  parallel_for(n, grain, 1, f);
}

// A buffer of the calling thread, at least `bytes` long and 64-byte aligned, kept for the next call. `slot`
// distinguishes buffers that one kernel needs at the same time. Throws std::runtime_error if out of memory.
void* thread_scratch(int slot, int64_t bytes);

}  // namespace pybatch
