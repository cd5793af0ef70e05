// What is known of each byte of a block's shared memory: who last wrote it, who has read it since, and when. "When" is
// the vector-clock time of FastTrack (Flanagan & Freund 2009), cut down to three readers a byte: the last one, another
// lane of its warp, and one of another warp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace simt {

// One access: thread, kind and the thread's time.
class Stamp {
 public:
  enum Kind : uint32_t { kPlain, kAtomic, kInFlight };
  Stamp() = default;
  Stamp(uint32_t time, Kind kind, uint32_t thread) : bits_(time << 12 | kind << 10 | thread) {}
  uint32_t time() const { return bits_ >> 12; }
  Kind kind() const { return static_cast<Kind>(bits_ >> 10 & 3); }
  uint32_t thread() const { return bits_ & 1023; }
  bool operator==(const Stamp&) const = default;

 private:
  uint32_t bits_ = 0;
};

// What can be known at some point: the latest time of each thread, and last that of the copies that land by themselves.
using Moment = std::vector<uint32_t>;

// Happens-before among the threads of a block.
class Clocks {
 public:
  void begin_block(uint32_t threads);
  uint32_t time(uint32_t thread) const { return time_[thread]; }
  uint32_t block_start() const { return block_start_; }
  bool half_spent() const { return now_ >> 19; }
  void join(const uint32_t* threads, uint32_t count);  // these threads synchronise
  void release(uint32_t thread, Moment& to);           // what the thread has done can be known from `to`
  void acquire(uint32_t thread, const Moment& from);
  uint32_t copier() const { return threads_; }  // stands for the asynchronous copies in a Stamp
  uint32_t land(Moment& to);                    // a copy lands: its time
  void fence_proxy(uint32_t thread) { fenced_[thread] = time_[thread], time_[thread] = tick(); }
  bool fenced(Stamp write) const { return write.thread() == copier() || fenced_[write.thread()] >= write.time(); }
  bool ordered(Stamp before, uint32_t thread) const {
    return before.time() < floor_ || before.thread() == thread ||
           (partial_ && seen_[thread * (threads_ + 1) + before.thread()] >= before.time());
  }

 private:
  uint32_t tick();
  uint32_t* seen(uint32_t thread);  // of a thread, copier() + 1 times

  uint32_t threads_ = 0, now_ = 0, block_start_ = 0;
  uint32_t floor_ = 0;     // everything earlier is ordered before every thread: the time of the last full barrier
  bool partial_ = false;   // some threads synchronised without the rest: seen_ holds what each has seen of each other
  std::vector<uint32_t> time_, seen_, fenced_;
};

struct Conflict {
  enum What { kNone, kNeverWritten, kInFlight, kRace, kNotFenced } what = kNone;
  bool earlier_write = false;
  uint32_t thread = 0;
  size_t offset = 0;
};

class Shadow {
 public:
  explicit Shadow(size_t bytes) : cells_(bytes) {}
  void begin_block(uint32_t threads);
  // by_proxy: through the asynchronous proxy, which sees what threads have written once they have fenced it.
  Conflict read(uint32_t thread, size_t offset, size_t bytes, bool by_proxy = false);
  Conflict write(uint32_t thread, size_t offset, size_t bytes, Stamp::Kind kind, bool by_proxy = false);
  void land(Stamp, size_t offset, size_t bytes);  // ends kInFlight

  Clocks clocks;

 private:
  struct Cell {
    Stamp writer, reader, same_warp, other_warp;
  };
  Conflict check_readers(const Cell&, uint32_t thread, size_t offset) const;
  std::vector<Cell> cells_;
};

}  // namespace simt
