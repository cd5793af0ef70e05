// A step's kernel calls, recorded once and run again and again with nothing of the framework in between: what a CUDA
// graph is on a GPU. A replay takes its inputs from where they were at the recording, whatever their values are by
// then.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pybatch/isa.h"

namespace pybatch {

class PYBATCH_EXPORT Graph {
 public:
  // From begin to end, this thread's kernel calls are recorded instead of run. One graph records at a time.
  void begin();
  void end();
  static Graph* recording();  // the calling thread's, or null

  template <class Params>
  void add(const char* name, void (*kernel)(const Params&), const Params& params) {
    calls_.push_back({name, [kernel, params] { kernel(params); }});
  }

  // What the calls use lives as long as the graph.
  void keep(std::shared_ptr<const void> owner) { kept_.push_back(std::move(owner)); }

  void replay() const;
  std::map<std::string, double> timed_replay() const;  // seconds by kernel

 private:
  struct Call {
    const char* name;
    std::function<void()> run;
  };
  std::vector<Call> calls_;
  std::vector<std::shared_ptr<const void>> kept_;
};

}  // namespace pybatch
