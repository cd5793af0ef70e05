#include "pybatch/graph.h"

#include <chrono>
#include <stdexcept>

namespace pybatch {
namespace {

thread_local Graph* current = nullptr;

}  // namespace

void Graph::begin() {
  if (current != nullptr) throw std::logic_error("a graph is being recorded already");
  current = this;
}

void Graph::end() { current = nullptr; }

Graph* Graph::recording() { return current; }

void Graph::replay() const {
  for (const Call& call : calls_) call.run();
}

std::map<std::string, double> Graph::timed_replay() const {
  using Clock = std::chrono::steady_clock;
  std::map<std::string, double> seconds;
  for (const Call& call : calls_) {
    const auto start = Clock::now();
    call.run();
    seconds[call.name] += std::chrono::duration<double>(Clock::now() - start).count();
  }
  return seconds;
}

}  // namespace pybatch
