// A step's kernel calls, recorded once and run again and again with nothing of the framework in between, as a CUDA
// graph does on a GPU. A replay reads its inputs where they were at the recording, whatever their values are by then,
// so it first checks that this memory is still there and that the values are legal.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pybatch/isa.h"

namespace pybatch {

class PYBATCH_EXPORT Graph {
 public:
  struct Range {
    const char* data;
    int64_t bytes;
    bool operator==(const Range&) const = default;
    bool holds(const void* p) const { return p >= data && p < data + bytes; }
  };
  // Memory that calls use: where it was at the recording, its owner, and where that has it now. A resize moves it.
  struct Memory {
    Range range;
    std::shared_ptr<const void> owner;
    const void* (*start)(const void* owner);
  };

  // From begin to end, this thread's kernel calls are recorded instead of run. One graph records at a time.
  void begin();
  void end();
  void clear();               // what was recorded
  static Graph* recording();  // the calling thread's, or null

  // Keeps memory of the next call alive as long as the graph. A replay throws if it has moved, naming the argument.
  bool keeps(Range range) const;
  void keep(const char* argument, const Memory& memory);
  void writes(const void* p);  // the next call writes the kept memory at p

  // The next call requires that check() does not throw. It is run now, and by each replay before any call; but if an
  // earlier call writes what the check reads, only by each replay, after that call.
  template <class Check>
  void check(const Check& check, std::initializer_list<const void*> reads) {
    for (const void* p : reads) {
      if (is_written(p)) return calls_.push_back({"checks", check});
    }
    check();
    for (const auto& known : checks_) {
      if (const Check* same = known.template target<Check>(); same != nullptr && *same == check) return;
    }
    checks_.emplace_back(check);
  }

  template <class Params>
  void add(const char* name, void (*kernel)(const Params&), const Params& params) {
    calls_.push_back({name, [kernel, params] { kernel(params); }});
    for (Kept& kept : kept_) kept.written |= kept.written_next;
  }

  void replay() const;
  std::map<std::string, double> timed_replay() const;  // seconds by kernel, and of the checks

 private:
  struct Call {
    const char* name;
    std::function<void()> run;
  };
  struct Kept {
    const char* argument;
    Memory memory;
    bool written, written_next;  // by a recorded call; by the next
  };

  bool is_written(const void* p) const;
  void run_checks() const;

  std::vector<Kept> kept_;
  std::vector<std::function<void()>> checks_;
  std::vector<Call> calls_;
};

}  // namespace pybatch
